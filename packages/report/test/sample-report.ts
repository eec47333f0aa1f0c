import { Rng } from "@coppice/core";
import type { ReportData, ReportRow } from "@coppice/report";

const estimate = (value: number, half: number, samples: number) => ({
  value,
  low: Math.max(0, value - half),
  high: Math.min(1, value + half),
  samples,
});

const row = (label: string, role: ReportRow["role"], search: number, holdout: number): ReportRow => ({
  label,
  role,
  search: estimate(search, 0.06, 200),
  holdout: estimate(holdout, 0.065, 200),
  ...(role === "full"
    ? {}
    : {
        difference: { value: holdout - 0.863, low: holdout - 0.91, high: holdout - 0.82, samples: 200 },
      }),
  ...(role === "baseline" && {
    gain: { value: 0.815 - holdout, low: 0.775 - holdout, high: 0.855 - holdout, samples: 200 },
  }),
});

/** A report as a search on the demo model gives it; `hostile` puts markup into every text. */
export function sampleReport(hostile = ""): ReportData {
  const rng = Rng.fromSeed(1);
  const evaluations = Array.from({ length: 400 }, (_, i) => ({
    evaluation: i + 1,
    fitness:
      i === 17 ? Number.NEGATIVE_INFINITY : 0.3 + 0.5 * (1 - Math.exp(-i / 80)) - 0.2 * rng.uniform() ** 2,
    phase: (i < 170 ? "prune" : "merge") + hostile,
    ...(i < 30 && { probe: true }),
  }));
  const layers = Array.from({ length: 6 }, (_, layer) => {
    const kept = rng.sample(8, 4).sort((a, b) => a - b);
    return {
      layer,
      experts: 8,
      kept,
      mapped: false,
      topK: 2,
      merge: kept.map((expert) =>
        Array.from({ length: 8 }, (_, j) =>
          j === expert ? 1 + 0.05 * rng.normal() : rng.bernoulli(0.2) ? 0.2 * rng.normal() : 0,
        ),
      ),
    };
  });
  return {
    title: `coppice-mixtral-27m, arith: 4 of 8 experts kept${hostile}`,
    summary: `The search strategy eep looked for 4 experts to keep in each of 6 layers, on 200 samples.${hostile}`,
    scores: [
      {
        metric: `exact match${hostile}`,
        rows: [
          row(`full model${hostile}`, "full", 0.845, 0.863),
          { ...row("random", "baseline", 0.035, 0.03), note: `mean of 5 draws${hostile}` },
          row("frequency", "baseline", 0.56, 0.553),
          row("REAP", "baseline", 0.7, 0.677),
          row("EEP", "chosen", 0.86, 0.813),
        ],
      },
    ],
    fitness: `log-probability of the answer${hostile}`,
    evaluations,
    layers,
    before: { bytes: 53_548_032, parameters: 26_774_016, activeParameters: 10_847_616 },
    after: { bytes: 31_200_000, parameters: 15_600_000, activeParameters: 10_838_400 },
    work: [
      { label: "evaluations", value: "400" },
      { label: "repeated plans, not evaluated again", value: "31" },
      { label: "time", value: "2 min 41 s" },
      { label: "layer runs avoided", value: "38.2 %" },
    ],
    identity: [
      { label: "model", value: `3f1a9c20d5b84be1${hostile}` },
      { label: "task", value: `arith.jsonl, 200 of 300 samples${hostile}` },
      { label: "seed", value: "1" },
    ],
    command: `coppice search ./model --strategy eep --keep 4 --task arith.jsonl --limit 200 --seed 1 --out run${hostile}`,
    notes: hostile ? [hostile] : ["Only 100 holdout samples: the interval is wide."],
  };
}
