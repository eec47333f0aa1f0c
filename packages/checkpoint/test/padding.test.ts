import type { TensorBytes } from "@coppice/checkpoint";
import { Rng, type RouterSpec, type TensorRef } from "@coppice/core";
import { describe, expect, it } from "vitest";
import type { ExpertTensors } from "../src/families/expert-tensors.js";
import { expectError } from "./helpers.js";
import { floats, type HandLayer, handMade, normal } from "./surgery-source.js";

const hidden = 6;

interface Setting {
  readonly experts: number;
  readonly router: Omit<RouterSpec, "weight" | "topK" | "bias" | "correction">;
  readonly topK: number;
  readonly choice?: "bias" | "correction";
  readonly dtype?: "F32" | "BF16" | "F16";
  readonly config?: object;
  readonly counts?: Parameters<typeof handMade>[3] extends { counts?: infer C } | undefined ? C : never;
}

/** A model of layers whose expert e holds the number e + 1, and zero where experts fill up. */
function modelOf(layers: number, { experts, router, topK, choice, dtype = "F32", ...more }: Setting) {
  const tensors = new Map<string, TensorBytes>();
  for (let layer = 0; layer < layers; layer++) {
    tensors.set(`l${layer}.gate`, normal("F32", [experts, hidden]));
    const stored = dtype === "F16" ? normal("BF16", [experts]) : normal(dtype, [experts], 0.3);
    if (choice) tensors.set(`l${layer}.choice`, { ...stored, dtype });
    const ids = Float32Array.from({ length: experts * 2 }, (_, i) => Math.floor(i / 2) + 1);
    tensors.set(`l${layer}.ids`, { dtype: "F32", shape: [experts, 2], bytes: new Uint8Array(ids.buffer) });
  }
  const described = Array.from(
    { length: layers },
    (_, layer): HandLayer => ({
      layer,
      router: { ...router, topK, ...(choice && { [choice]: `l${layer}.choice` }) },
      routerWeight: `l${layer}.gate`,
      experts,
    }),
  );
  const edits = (refs: ReadonlyMap<string, TensorRef>) =>
    described.map(({ layer }): ExpertTensors => {
      const get = (name: string) => refs.get(`l${layer}.${name}`) as TensorRef;
      return {
        layer,
        label: `layer ${layer}`,
        experts,
        rows: [
          { tensor: get("gate"), axis: 0, role: "weight" },
          ...(choice ? [{ tensor: get("choice"), axis: 0, role: choice }] : []),
        ],
        separate: [],
        stacked: [{ tensor: get("ids"), rowsPerExpert: 1, merge: "plain" }],
      };
    });
  return handMade(tensors, described, edits, more);
}

/** A router as the stock implementation computes it, expert by expert; `groups` lists the experts of each. */
interface SlowRouter {
  readonly rows: readonly (readonly number[])[];
  readonly ids: readonly number[];
  readonly choice: readonly number[];
  readonly order: RouterSpec["order"];
  readonly topK: number;
  readonly groups?: { readonly members: readonly (readonly number[])[]; readonly keep: number };
  /** Score of experts outside of the groups that are kept. */
  readonly outside?: number;
}

/** Chosen experts by their number, with their gate weights, all in float32. */
function slowRoute(router: SlowRouter, x: readonly number[]): [number, number][] {
  const { rows, ids, choice, order, topK, groups, outside = Number.NEGATIVE_INFINITY } = router;
  const dot = (row: readonly number[]) => Math.fround(row.reduce((sum, value, i) => sum + value * x[i]!, 0));
  const logits = rows.map((row, i) =>
    order === "topk-softmax" ? Math.fround(dot(row) + choice[i]!) : dot(row),
  );
  const scores = logits.map((z) => (order === "sigmoid-topk" ? Math.fround(1 / (1 + Math.exp(-z))) : z));
  let selection = order === "sigmoid-topk" ? scores.map((s, i) => Math.fround(s + choice[i]!)) : scores;
  if (groups) {
    const best = groups.members.map((members) => {
      const [a, b] = members.map((i) => selection[i]!).sort((p, q) => q - p);
      return b === undefined ? a! : Math.fround(a! + b);
    });
    const kept = best
      .map((_, g) => g)
      .sort((a, b) => best[b]! - best[a]! || a - b)
      .slice(0, groups.keep)
      .flatMap((g) => groups.members[g]!);
    selection = selection.map((value, i) => (kept.includes(i) ? value : outside));
  }
  const chosen = selection
    .map((_, i) => i)
    .sort((a, b) => selection[b]! - selection[a]! || a - b)
    .slice(0, topK);
  let gates = chosen.map((i) =>
    order === "sigmoid-topk" ? scores[i]! : Math.exp(logits[i]! - logits[chosen[0]!]!),
  );
  const sum = gates.reduce((total, gate) => total + gate, 0);
  gates = gates.map((gate) => Math.fround(gate / sum));
  return chosen.map((i, rank): [number, number] => [ids[i]!, gates[rank]!]).sort(([a], [b]) => a - b);
}

function matrix(tensor: TensorBytes): number[][] {
  const values = [...floats(tensor)];
  return Array.from({ length: tensor.shape[0]! }, (_, i) => values.slice(i * hidden, (i + 1) * hidden));
}

/** Tokens on which the written layer and the original with all but `kept` left out choose otherwise. */
function differences(
  before: ReadonlyMap<string, TensorBytes>,
  after: ReadonlyMap<string, TensorBytes>,
  layer: number,
  kept: readonly number[],
  { order, topK }: Pick<SlowRouter, "order" | "topK">,
  groups?: { before: number; after: number; keep: number; outside?: number },
): number {
  const gate = matrix(before.get(`l${layer}.gate`)!);
  const original: SlowRouter = {
    rows: kept.map((expert) => gate[expert]!),
    ids: kept.map((expert) => expert + 1),
    choice: kept.map((expert) => floats(before.get(`l${layer}.choice`)!)[expert]!),
    order,
    topK,
  };
  const rows = matrix(after.get(`l${layer}.gate`)!);
  const written: SlowRouter = {
    rows,
    ids: rows.map((_, slot) => floats(after.get(`l${layer}.ids`)!)[2 * slot]!),
    choice: [...floats(after.get(`l${layer}.choice`)!)],
    order,
    topK,
  };
  const split = (size: number, experts: readonly number[]) => {
    const members = new Map<number, number[]>();
    for (const [slot, expert] of experts.entries()) {
      const group = Math.floor(expert / size);
      members.set(group, [...(members.get(group) ?? []), slot]);
    }
    return members;
  };
  const grouped = (router: SlowRouter, size: number, experts: readonly number[]): SlowRouter =>
    groups
      ? {
          ...router,
          groups: { members: [...split(size, experts).values()], keep: groups.keep },
          ...(groups.outside !== undefined && { outside: groups.outside }),
        }
      : router;
  const [a, b] = [
    grouped(original, gate.length / (groups?.before ?? 1), kept),
    grouped(written, rows.length / (groups?.after ?? 1), [...rows.keys()]),
  ];
  const rng = Rng.fromSeed(layer);
  let different = 0;
  for (let token = 0; token < 400; token++) {
    const x = Array.from({ length: hidden }, () => 2 * rng.normal());
    if (JSON.stringify(slowRoute(a, x)) !== JSON.stringify(slowRoute(b, x))) different++;
  }
  return different;
}

const sigmoid = { order: "sigmoid-topk", normalize: { power: 1, epsilon: 1e-20 } } as const;
const gptOss = { order: "topk-softmax" } as const;

describe("layers of different sizes", () => {
  for (const dtype of ["F32", "BF16"] as const) {
    for (const [label, router, choice] of [
      ["a correction", sigmoid, "correction"],
      ["a router bias", gptOss, "bias"],
    ] as const) {
      it(`are filled up by ${label} in ${dtype}, which changes no choice and no gate weight`, async () => {
        const { apply, tensors } = await modelOf(3, {
          experts: 8,
          topK: 2,
          router,
          choice,
          dtype,
          config: { n: 8, k: 2 },
          counts: { experts: ["n"], topK: ["k"] },
        });
        const kept = [
          [5, 1, 6],
          [0, 1, 2, 3, 7],
          [3, 2],
        ];
        const output = await apply(kept.map((experts, layer) => ({ layer, experts })));
        expect(output.config).toEqual({ n: 5, k: 2 });
        expect(output.predicted).toEqual(output.summary);
        const choiceBytes = dtype === "F32" ? 4 : 2;
        expect(output.summary).toMatchObject({
          experts: 5,
          padded: { experts: 5, bytes: 5 * (4 * hidden + choiceBytes + 8) },
        });
        for (const [layer, experts] of kept.entries()) {
          const ids = floats(output.tensors.get(`l${layer}.ids`)!).filter((_, i) => i % 2 === 0);
          expect([...ids]).toEqual([...experts.map((e) => e + 1), 0, 0, 0].slice(0, 5));
          const order = { order: router.order, topK: 2 };
          expect(differences(tensors, output.tensors, layer, experts, order)).toBe(0);
        }
      });
    }
  }

  it("keep their groups, equal in size, with those that fill up inside", async () => {
    const router = { ...sigmoid, groups: { count: 4, keep: 2, score: "top2" } } as const;
    const { apply, tensors } = await modelOf(5, {
      experts: 16,
      topK: 3,
      router,
      choice: "correction",
      config: { n: 16, n_group: 4, topk_group: 2, k: 3 },
      counts: { experts: ["n"], groups: ["n_group"], groupsKept: ["topk_group"], topK: ["k"] },
    });
    const kept = [
      [15, 0, 1, 2, 4, 5, 8, 9, 10, 12, 13],
      [9, 8, 1, 0, 4, 5],
      [4, 5, 6, 15],
      [8, 9, 10, 11],
      [0, 1, 4, 5, 8, 9, 12, 13],
    ];
    const output = await apply(kept.map((experts, layer) => ({ layer, experts })));
    expect(output.config).toEqual({ n: 12, n_group: 4, topk_group: 2, k: 3 });
    expect(output.summary.padded.experts).toBe(5 * 12 - kept.flat().length);
    for (const [layer, experts] of kept.entries()) {
      const ascending = [...experts].sort((a, b) => a - b);
      const ids = [...floats(output.tensors.get(`l${layer}.ids`)!)].filter((id, i) => i % 2 === 0 && id > 0);
      expect(ids).toEqual(ascending.map((expert) => expert + 1));
      const groups = { before: 4, after: 4, keep: 2 };
      const order = { order: router.order, topK: 3 };
      expect(differences(tensors, output.tensors, layer, ascending, order, groups)).toBe(0);
    }
    // As many groups as a token may use in every layer: no groups are left to choose from.
    const free = await apply(
      [
        [4, 5, 6, 15],
        [8, 9, 10],
        [0, 1, 2, 3, 4],
        [0, 1, 4],
        [0, 1, 2],
      ].map((experts, layer) => ({ layer, experts })),
    );
    expect(free.config).toEqual({ n: 5, n_group: 1, topk_group: 1, k: 3 });
    const order = { order: router.order, topK: 3 };
    expect(differences(tensors, free.tensors, 0, [4, 5, 6, 15], order)).toBe(0);
    await expectError(
      apply([{ layer: 1, experts: [0, 1, 4, 8, 9, 10] }]),
      "COPPICE_PLAN_GROUPS",
      "layer 1 would have 2, 1, 3 experts in its groups",
    );
  });

  it("would choose otherwise in groups with a single real expert, which is why those are refused", () => {
    const rows = [[3], [0], [1], [1.5], [0], [0]].map(([first]) => [first!, 0, 0, 0, 0, 0]);
    const base = { rows, ids: [1, 2, 3, 4, 5, 6], order: "sigmoid-topk", topK: 1 } as const;
    const real = { ...base, choice: [0, -1e9, 0, 0, -1e9, -1e9] };
    const groups = {
      members: [
        [0, 1],
        [2, 3],
        [4, 5],
      ],
      keep: 1,
    };
    expect(slowRoute({ ...real, groups }, [1, 0, 0, 0, 0, 0])[0]![0]).toBe(4);
    expect(
      slowRoute({ ...real, groups: { ...groups, members: [[0], [2, 3]] } }, [1, 0, 0, 0, 0, 0])[0]![0],
    ).toBe(4);
    expect(slowRoute(real, [1, 0, 0, 0, 0, 0])[0]![0]).toBe(1);
  });

  it("need no room for the bias where none is filled up", async () => {
    for (const [router, choice] of [
      [sigmoid, "correction"],
      [gptOss, "bias"],
    ] as const) {
      const { apply } = await modelOf(2, { experts: 6, topK: 2, router, choice, dtype: "F16" });
      const { tensors, summary } = await apply([0, 1].map((layer) => ({ layer, experts: [4, 1, 2] })));
      expect(summary).toMatchObject({ experts: 3, padded: { experts: 0, bytes: 0 } });
      expect(tensors.get("l1.choice")).toMatchObject({ dtype: "F16", shape: [3] });
    }
  });

  const refused = async (setting: Partial<Setting>, ...parts: string[]) => {
    const { apply, loaded } = await modelOf(2, { experts: 6, topK: 2, router: sigmoid, ...setting });
    await expectError(
      apply([{ layer: 1, experts: [0, 1, 2] }]),
      "COPPICE_PLAN_EXPORT",
      "hand_made",
      ...parts,
    );
    return { apply, loaded };
  };

  it("are refused with the reason where no choice can be ruled out", async () => {
    await refused({}, "layer 0 has 6 experts and layer 1 has 3", "its router has no bias");
    await refused({ router: { order: "softmax-topk" } }, "its router has no bias");
    await refused({ router: { order: "sparsemixer" }, choice: "bias" }, "its router has no bias");
    await refused({ router: gptOss, choice: "bias", dtype: "F16" }, "l0.choice is stored as F16");
    await refused(
      { router: { order: "softmax-topk", normalize: { power: 1, least: 1e-12 } }, choice: "correction" },
      "adds the correction to a softmax over all experts",
    );
  });

  it("would change ERNIE's choice, whose corrections are added to a softmax over all", () => {
    const correction = [0, 0.4];
    const choose = (logits: readonly number[], biases: readonly number[]) => {
      const sum = logits.reduce((total, z) => total + Math.exp(z), 0);
      const scores = logits.map((z, i) => Math.exp(z) / sum + biases[i]!);
      return scores.indexOf(Math.max(...scores));
    };
    const logits = [1, 0];
    expect(choose(logits, correction)).toBe(0);
    expect(choose([...logits, 0, 0], [...correction, -1e9, -1e9])).toBe(1);
  });

  it("keep their sizes in the runtime layout, whose config lists them", async () => {
    const { apply } = await refused({ config: { n: 6 }, counts: { experts: ["n"] } });
    const plans = [{ layer: 1, experts: [4, 0, 2], topK: 1 }];
    const { summary, predicted, tensors, config } = await apply(plans, { layout: "runtime" });
    expect(summary).toEqual(predicted);
    expect(summary).toMatchObject({ experts: 6, topK: 2, padded: { experts: 0, bytes: 0 } });
    expect(config).toEqual({ n: [6, 3], k: [2, 1] });
    expect(tensors.get("l1.gate")!.shape).toEqual([3, hidden]);
  });

  it("change the entries of lists with one per layer", async () => {
    const { apply } = await modelOf(2, {
      experts: 6,
      topK: 2,
      router: sigmoid,
      config: { inner: { num: [6, 6] }, k: [2, 2] },
      counts: { experts: ["inner.num"], topK: ["k"] },
    });
    const plans = [0, 1].map((layer) => ({ layer, experts: [4, 0, 2], topK: 1 }));
    expect((await apply(plans)).config).toEqual({ inner: { num: [3, 3] }, k: [1, 1] });
    const { config } = await apply(plans.slice(1), { layout: "runtime" });
    expect(config).toEqual({ inner: { num: [6, 3] }, k: [2, 1] });
  });
});

describe("uniform plans of routers with groups", () => {
  const router = { order: "softmax-topk", groups: { count: 4, keep: 2, score: "max" } } as const;
  const config = { text: { n: 8, g: 4 }, k: 2 };
  const counts = { experts: ["text.n"], groups: ["text.g"], groupsKept: ["k"] };
  const make = () => modelOf(2, { experts: 8, topK: 2, router, config, counts });
  const both = (a: number[], b: number[]) => [
    { layer: 0, experts: a },
    { layer: 1, experts: b },
  ];

  it("write experts in ascending order and the groups that are left", async () => {
    const { apply } = await make();
    for (const [experts, g, k] of [
      [[7, 4, 0, 2], 4, 2],
      [[3, 2, 7, 6, 1, 0], 3, 2],
      [[5, 4, 2, 3], 1, 1],
      [[2, 4, 5], 1, 1],
    ] as const) {
      const output = await apply(both([...experts], [...experts]));
      expect(output.config).toEqual({ text: { n: experts.length, g }, k });
      const ids = [...floats(output.tensors.get("l0.ids")!)].filter((_, i) => i % 2 === 0);
      expect(ids).toEqual([...experts].sort((p, q) => p - q).map((expert) => expert + 1));
    }
  });

  it("state in config.json what it left to a default", async () => {
    const { apply } = await modelOf(2, {
      experts: 8,
      topK: 2,
      router,
      config: { text: { n: 8 } },
      counts: { experts: ["text.n"] },
    });
    const plans = both([0, 2, 4], [0, 3, 4]).map((plan) => ({ ...plan, topK: 1 }));
    expect((await apply(plans)).config).toEqual({ text: { n: 3, k: 1, g: 3 } });
  });

  it("are refused when groups differ within a layer or between layers", async () => {
    const { apply } = await make();
    await expectError(apply(both([0, 1, 2, 4], [0, 1, 2, 4])), "COPPICE_PLAN_GROUPS", "2, 1, 1, 0");
    await expectError(
      apply(both([0, 2, 4, 6], [0, 1, 2, 3])),
      "COPPICE_PLAN_EXPORT",
      "layer 0 keeps experts of 4 groups and layer 1 of no more groups than a token may use",
    );
  });
});

describe("config.json", () => {
  it("changes equal numbers in lists, and names of experts in lists of modules", async () => {
    const quantization = {
      quant_method: "fp8",
      modules_to_not_convert: [
        "lm_head",
        "model.l0.experts.0.up",
        "l0.experts.2",
        "l0.experts.1.up",
        "outer.model.l0.experts.1",
        "l1.experts.0",
      ],
      weight_block_size: [128, 128],
      deeper: { ignore: ["re:.*experts.*", "model.l0.experts.7.down"] },
      targets: ["Linear"],
    };
    const names = ["l0.gate", ...Array.from({ length: 8 }, (_, e) => `model.l0.experts.${e}.up`)];
    const { apply } = await handMade(
      new Map(names.map((name) => [name, normal("F32", [8, hidden])])),
      [{ layer: 0, router: { order: "softmax-topk" }, routerWeight: "l0.gate", experts: 8 }],
      (refs) => [
        {
          layer: 0,
          label: "layer 0",
          experts: 8,
          rows: [{ tensor: refs.get("l0.gate")!, axis: 0, role: "weight" }],
          separate: names.slice(1).map((name, expert) => ({
            tensor: refs.get(name)!,
            expert,
            pattern: "model.l0.experts.{e}.up",
            merge: "plain",
          })),
          stacked: [],
        },
      ],
      {
        config: {
          capacity: [8, 8, 2],
          per_layer: [8, 1, 8],
          k: [2, 2],
          n_group: 4,
          text_config: { quantization_config: quantization },
        },
        counts: { experts: ["per_layer"], topK: ["k"], capacity: ["capacity"], groups: ["n_group"] },
      },
    );
    const { config } = await apply([{ layer: 0, experts: [7, 2, 1], topK: 1 }]);
    expect(config).toEqual({
      capacity: [3, 3, 2],
      per_layer: [3, 1, 3],
      k: [1, 1],
      n_group: 1,
      text_config: {
        quantization_config: {
          ...quantization,
          modules_to_not_convert: [
            "lm_head",
            "l0.experts.1",
            "l0.experts.2.up",
            "outer.model.l0.experts.2",
            "l1.experts.0",
          ],
          deeper: { ignore: ["re:.*experts.*", "model.l0.experts.0.down"] },
        },
      },
    });
  });
});
