import type { FormEvent } from "react";

/** Ask for the token of a server that needs one; it is kept until the tab is closed. */
export function TokenForm({ onToken }: { onToken: (token: string) => void }) {
  const submit = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token");
    if (typeof token === "string" && token) onToken(token.trim());
  };
  return (
    <form className="notice" onSubmit={submit}>
      <label>
        This server needs an access token <input name="token" type="password" autoComplete="off" required />
      </label>
      <button type="submit">Continue</button>
    </form>
  );
}
