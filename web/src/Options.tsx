import type { Card } from "./api";
import { duration } from "./words";

interface Props {
  models: Card[];
  model: string;
  onChange: (model: string) => void;
}

/** Choice of the detector, if the server offers several. */
export function Options({ models, model, onChange }: Props) {
  if (models.length < 2) return null;
  return (
    <p className="options">
      <label htmlFor="detector">Detector</label>
      <select id="detector" value={model} onChange={(event) => onChange(event.target.value)}>
        {models.map(({ name, seconds }) => (
          <option key={name} value={name}>
            {name}
            {seconds !== undefined && `, ${duration(seconds)} per face`}
          </option>
        ))}
      </select>
    </p>
  );
}
