import { useState } from "react";

const KEY = "theme";

function stored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function apply(theme: string | null) {
  if (theme) document.documentElement.dataset.theme = theme;
}

apply(stored());

/** Switch between light and dark; without a choice the page follows the system. */
export function ThemeButton() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(stored() ?? system);
  const other = theme === "dark" ? "light" : "dark";
  return (
    <button
      type="button"
      className="quiet theme"
      onClick={() => {
        apply(other);
        setTheme(other);
        try {
          localStorage.setItem(KEY, other);
        } catch {
          // Storage is not available: the choice lasts until the page is closed.
        }
      }}
    >
      {other === "dark" ? "Dark" : "Light"}
    </button>
  );
}
