import type { Card } from "./api";
import { band, duration, percent, sees, share } from "./words";

/** Facts that help to decide how far to trust the detector. */
export function ModelCard({ card }: { card: Card }) {
  const [low, high] = band(card);
  return (
    <details className="panel">
      <summary>About this detector: {card.name}</summary>
      <dl>
        <dt>Model</dt>
        <dd>{card.model}</dd>
        <dt>Trained on</dt>
        <dd>{card.trained_on.join(", ") || "not recorded"}</dd>
        <dt>Looks at</dt>
        <dd>{sees(card)}</dd>
        {card.seconds !== undefined && (
          <>
            <dt>Takes</dt>
            <dd>{duration(card.seconds)} per face on this server</dd>
          </>
        )}
        <dt>Says “fake” from</dt>
        <dd>{percent(high)}</dd>
        <dt>Says “real” below</dt>
        <dd>{percent(low)}</dd>
      </dl>
      {card.sources.length > 0 ? <Sources card={card} /> : card.tests.length > 0 && <Tests card={card} />}
      <h3>Where it fails</h3>
      <ul>
        <li>
          On generators and cameras that it was not trained on. There, detectors of this kind often do little better
          than guessing.
        </li>
        <li>On pictures that were scaled down, compressed or captured from a screen. The stress test shows how much.</li>
        <li>When someone tries to fool it: invisible changes are enough.</li>
        {card.geometry.mode !== "resize" && <li>On manipulations outside the part that it looks at.</li>}
        <li>On pictures without a face, which it was not designed for.</li>
      </ul>
    </details>
  );
}

function Sources({ card }: { card: Card }) {
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label="Test results by source">
      <table className="stacked">
        <caption>What it said about test pictures</caption>
        <thead>
          <tr>
            <th scope="col">Source</th>
            <th scope="col">In training for this test</th>
            <th scope="col">Real photographs called fake</th>
            <th scope="col">Fakes called fake</th>
          </tr>
        </thead>
        <tbody>
          {card.sources.map((row) => (
            <tr key={row.source}>
              <th scope="row">
                {row.about} ({row.source})
              </th>
              <td data-label="In training for this test">{row.seen ? "yes" : "no"}</td>
              <td className="number" data-label="Real photographs called fake">
                {counted(row.real_called_fake, row.n_real)}
              </td>
              <td className="number" data-label="Fakes called fake">
                {counted(row.fake_found, row.n_fake)}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const counted = (part: number | null, count: number) => (part === null ? "–" : `${share(part)} of ${count}`);

function Tests({ card }: { card: Card }) {
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label="Test results">
      <table>
        <caption>Test results of this checkpoint</caption>
        <thead>
          <tr>
            <th scope="col">Test data</th>
            <th scope="col">Pictures</th>
            <th scope="col">Right</th>
            <th scope="col">Reals called fake</th>
            <th scope="col">Fakes missed</th>
          </tr>
        </thead>
        <tbody>
          {card.tests.map((row) => (
            <tr key={row.dataset}>
              <th scope="row">{row.dataset}</th>
              <td>{(row.n_real ?? 0) + (row.n_fake ?? 0)}</td>
              <td>
                {share(row.acc)}
                {row.acc_ci && ` (${share(row.acc_ci[0])} to ${share(row.acc_ci[1])})`}
              </td>
              <td>{share(row.real_acc === null ? null : 1 - row.real_acc)}</td>
              <td>{share(row.fake_acc === null ? null : 1 - row.fake_acc)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
