import { type RotaryScaling, type RotarySpec, rotaryFrequencies, rotaryRegime } from "@coppice/core";
import { describe, expect, test } from "vitest";

/** What transformers 5.17 computes (`ROPE_INIT_FUNCTIONS`) for heads of 16 dimensions. */
const expected: Record<
  string,
  { theta?: number; length?: number; scaling: RotaryScaling; frequencies: number[]; factor?: number }
> = {
  linear: {
    scaling: { kind: "linear", factor: 4 },
    frequencies: [
      0.25, 0.07905694097280502, 0.02500000037252903, 0.007905694656074047, 0.0024999999441206455,
      0.0007905694656074047, 0.0002500000118743628, 7.905694656074047e-5,
    ],
  },
  "dynamic, short": {
    length: 40,
    scaling: { kind: "dynamic", factor: 2, originalContext: 64 },
    frequencies: [
      1, 0.3162277638912201, 0.10000000149011612, 0.03162277862429619, 0.009999999776482582,
      0.003162277862429619, 0.0010000000474974513, 0.0003162277862429619,
    ],
  },
  "dynamic, long": {
    length: 100,
    scaling: { kind: "dynamic", factor: 2, originalContext: 64 },
    frequencies: [
      1, 0.28394514322280884, 0.08062484115362167, 0.0228930301964283, 0.0065003652125597,
      0.0018457469996064901, 0.0005240908940322697, 0.00014881306560710073,
    ],
  },
  llama3: {
    theta: 500_000,
    scaling: {
      kind: "llama3",
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 32,
    },
    frequencies: [
      1, 0.024240344762802124, 0.004700753837823868, 0.0009115831344388425, 0.00017677668074611574,
      3.428102354519069e-5, 6.647869668086059e-6, 1.289173155782919e-6,
    ],
  },
  yarn: {
    scaling: {
      kind: "yarn",
      factor: 8,
      originalContext: 512,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 1.2079441541679836,
      truncate: true,
    },
    frequencies: [
      1, 0.24705293774604797, 0.05625000223517418, 0.010870330035686493, 0.0012499999720603228,
      0.00039528473280370235, 0.0001250000059371814, 3.9528473280370235e-5,
    ],
    factor: 1.2079441541679836,
  },
  "yarn with borders between dimensions": {
    theta: 150_000,
    scaling: {
      kind: "yarn",
      factor: 32,
      originalContext: 4096,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 1.3465735902799727,
      truncate: false,
    },
    frequencies: [
      1, 0.22541800141334534, 0.05081327259540558, 0.006794959306716919, 0.0004564839182421565,
      1.818833698052913e-5, 4.099978468730114e-6, 9.242089618055616e-7,
    ],
    factor: 1.3465735902799727,
  },
  "longrope, short": {
    length: 32,
    scaling: longrope(),
    frequencies: [
      1, 0.2874797582626343, 0.0833333358168602, 0.024325214326381683, 0.0071428571827709675,
      0.0021081853192299604, 0.0006249999860301614, 0.0001860163320088759,
    ],
    factor: 1.25,
  },
  "longrope, long": {
    length: 33,
    scaling: longrope(),
    frequencies: [
      0.5, 0.12649111449718475, 0.03333333507180214, 0.009035078808665276, 0.0024999999441206455,
      0.0007027284009382129, 0.00019999999494757503, 5.749595584347844e-5,
    ],
    factor: 1.5,
  },
};

function longrope(): RotaryScaling {
  return {
    kind: "longrope",
    shortFactors: [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    longFactors: [2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5],
    originalContext: 32,
    attentionFactor: 1.25,
    longAttentionFactor: 1.5,
  };
}

const spec = (scaling: RotaryScaling, theta = 10_000): RotarySpec => ({
  theta,
  dimensions: 16,
  interleaved: false,
  scaling,
});

describe("rotaryFrequencies", () => {
  test.each(Object.entries(expected))("is that of the reference implementation: %s", (_, given) => {
    const found = rotaryFrequencies(spec(given.scaling, given.theta), given.length ?? 1);
    for (const [i, value] of given.frequencies.entries()) {
      // A float32 that differs in its last bit: pow of different libraries.
      expect(Math.abs((found.frequencies[i] as number) / value - 1)).toBeLessThan(1.3e-7);
    }
    expect(found.factor).toBeCloseTo(given.factor ?? 1, 12);
  });

  test("is plain without scaling", () => {
    const { scaling: _, ...plain } = spec({ kind: "linear", factor: 1 });
    const { frequencies } = rotaryFrequencies(plain, 1e6);
    expect([...frequencies]).toEqual([
      ...rotaryFrequencies(spec({ kind: "linear", factor: 1 }), 1).frequencies,
    ]);
    expect(frequencies[4]).toBe(Math.fround(0.01));
  });
});

describe("rotaryRegime", () => {
  test("is equal exactly where frequencies are", () => {
    for (const { scaling, theta } of Object.values(expected)) {
      const rotary = spec(scaling, theta);
      const tables = [1, 32, 33, 64, 65, 66, 100].map((length) => ({
        regime: rotaryRegime(rotary, length),
        table: JSON.stringify([...rotaryFrequencies(rotary, length).frequencies]),
      }));
      for (const a of tables) {
        for (const b of tables) expect(a.regime === b.regime).toBe(a.table === b.table);
      }
    }
  });
});
