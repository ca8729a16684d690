import type { FormEvent } from "react";

interface Props {
  rejected: boolean; // whether the server did not accept the last one
  onToken: (token: string) => void;
}

/** Ask for the token of a server that needs one; it is kept until the tab is closed. */
export function TokenForm({ rejected, onToken }: Props) {
  const submit = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token");
    if (typeof token === "string" && token) onToken(token.trim());
  };
  return (
    <form className="notice" onSubmit={submit}>
      {rejected && <p role="alert">The server did not accept this token.</p>}
      <label>
        This server needs an access token{" "}
        <input name="token" type="password" autoComplete="off" autoFocus={rejected} required />
      </label>
      <button type="submit">Continue</button>
    </form>
  );
}
