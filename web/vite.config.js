import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  // The server's Content-Security-Policy allows no inline script, so nothing may be inlined into the page.
  build: { modulePreload: { polyfill: false }, assetsInlineLimit: 0 },
  // `npm run dev` shows the page with hot reload; `python serve.py` answers its requests.
  server: { proxy: { "/api": "http://127.0.0.1:5000" } },
});
