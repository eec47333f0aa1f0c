import { type LayerTap, type MoeSpec, moeLayers, Rng, routeTokens, type TapField } from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { planExperts } from "../src/plan-weights.js";
import { Scratch } from "../src/scratch.js";
import { showLayer } from "../src/show-layer.js";
import { readWeights } from "../src/weights.js";

const fields: TapField[] = ["residual", "input", "routerLogits", "routing", "everyOutput", "everyUnit"];
const tokens = 9;

/** Shows nine random tokens of a layer whose gate weights scale inputs, at most `most` values at once. */
async function shownOf(most: number | undefined, every?: Uint8Array): Promise<LayerTap[]> {
  const { model, weights } = randomModel(sampleShapes["scaled-inputs"]);
  const spec = moeLayers(model)[0]?.feedForward as MoeSpec;
  const layer = (await readWeights({ model, weights }, { from: 0, to: 1 })).layers.get(0);
  if (!layer?.router) throw new Error("layer 0 has experts");
  const rng = Rng.fromSeed(5);
  const random = (size: number) => Float32Array.from({ length: tokens * size }, () => rng.normal());
  const logits = random(4);
  const run = {
    tokens,
    input: random(model.hiddenSize),
    logits,
    routing: routeTokens(logits, tokens, spec.router),
    outputs: undefined,
    norms: undefined,
    peaks: undefined,
    output: random(model.hiddenSize),
  };
  const experts = planExperts(spec, layer.mlps, layer.router, undefined);
  const call = {
    layer: 0,
    spec,
    plan: undefined,
    experts,
    shared: undefined,
    sharedGate: undefined,
    residual: random(model.hiddenSize),
    tap: undefined,
    spared: undefined,
  };
  const shown: LayerTap[] = [];
  const tap = {
    fields,
    ...(every && { every }),
    onLayer: (part: LayerTap) => shown.push(structuredClone(part)),
  };
  showLayer(tap, call, run, new Scratch(), most);
  return shown;
}

describe("showLayer", () => {
  const mask = Uint8Array.of(0, 1, 1, 0, 0, 1, 0, 1, 1);
  const joined = (parts: LayerTap[], key: Exclude<keyof LayerTap, "layer" | "tokens" | "topK">) =>
    parts.flatMap((part) => Array.from(part[key] ?? []));

  test.each([
    ["all tokens", undefined, [2, 2, 2, 2, 1]],
    ["some tokens", mask, [5, 3, 1]],
  ])("shows %s in pieces that hold no more than it is given", async (_, every, sizes) => {
    const [whole, ...none] = await shownOf(undefined, every);
    if (!whole) throw new Error("nothing is shown");
    expect(none).toEqual([]);
    // Four experts with an output of 16 values and 12 hidden units each.
    const parts = await shownOf(2 * 4 * (16 + 12), every);
    expect(parts.map((part) => part.tokens)).toEqual(sizes);
    for (const key of ["rows", "residual", "input", "routerLogits", "slots", "gates"] as const)
      expect(joined(parts, key)).toEqual(Array.from(whole[key] ?? []));
    for (const key of ["everyOutput", "everyUnit"] as const)
      expect(joined(parts, key)).toEqual(Array.from(whole[key] ?? []));
    const asked = parts.flatMap((part) => Array.from(part.everyRows ?? [], (row) => part.rows[row]));
    expect(asked).toEqual(Array.from(whole.everyRows ?? []));
  });

  test("shows a token whose experts take more than it is given alone", async () => {
    expect((await shownOf(1, mask)).map((part) => part.everyRows?.length)).toEqual([1, 1, 1, 1, 1]);
  });

  test("shows nothing of all experts where no token is asked for", async () => {
    const [shown, ...more] = await shownOf(1, new Uint8Array(tokens));
    expect(more).toEqual([]);
    expect(shown).toMatchObject({ tokens, everyRows: new Int32Array(0), everyUnit: new Float32Array(0) });
  });
});
