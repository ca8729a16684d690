import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { App } from "./App";
import "./base.css";
import "./layout.css";
import "./gallery.css";
import "./detail.css";
import "./faces.css";
import "./video.css";
import "./media.css";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
