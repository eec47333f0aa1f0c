import { reference } from "@coppice/backend-reference";
import { collectStatistics } from "@coppice/calibrate";
import {
  createRegistry,
  type MlpSpec,
  type MoeLayer,
  moeLayers,
  type Statistics,
  type TensorRef,
} from "@coppice/core";
import { intoMemory, type MemoryModel, slowForward } from "@coppice/plugin-kit";
import { loadFixture } from "@coppice/plugin-kit/node";

/** Every routing order, with groups, biases, fused layouts and scaled inputs. */
export const families = [
  "mixtral",
  "olmoe",
  "deepseek_v2",
  "deepseek_v3",
  "gpt_oss",
  "phimoe",
  "llama4_text",
] as const;

/** A model, token by token in float64. */
export interface SlowModel {
  readonly source: MemoryModel;
  /** What mergers read, collected by the reference backend; a sample of all tokens. */
  readonly statistics: Statistics;
  /** One per MoE layer. */
  readonly layers: readonly SlowExperts[];
}

export interface SlowExperts {
  readonly layer: MoeLayer;
  /** [token][expert] */
  readonly logits: readonly (readonly number[])[];
  /** [expert], tokens routed to it. */
  readonly usage: readonly number[];
  /** [expert], mean over its tokens of the norm of what it adds. */
  readonly saliency: readonly number[];
  /** [expert], sum of its gate weights. */
  readonly gates: readonly number[];
  /** [expert][token][width] */
  readonly units: readonly (readonly (readonly number[])[])[];
  /** [expert][token][hidden] */
  readonly outputs: readonly (readonly (readonly number[])[])[];
  /** [expert][unit]: row of gate with bias, row of up with bias, column of down. */
  readonly vectors: readonly (readonly (readonly number[])[])[];
}

export async function slowModel(name: (typeof families)[number]): Promise<SlowModel> {
  const fixture = await loadFixture(name);
  const { model, golden } = fixture;
  const registry = createRegistry([reference]);
  const backend = await registry.create("backend", "reference", {}, undefined);
  const runner = await backend.load(fixture);
  const statistics = await collectStatistics({
    runner,
    sequences: golden.sequences,
    name,
    extras: ["everyOutputSum", "outputCosine"],
    // More than there are.
    sample: { limit: 1000, with: ["units"] },
  });
  await runner.dispose();
  const source = await intoMemory(model, fixture.weights);
  const results = golden.sequences.map((ids) => slowForward(source, [...ids]));
  const layers = moeLayers(model).map((layer, i) =>
    slowExperts(
      source,
      layer,
      results.flatMap((result) => {
        const { input = [], routerLogits = [], choices = [] } = result.layers[i] ?? {};
        return input.map((x, t) => ({ x, logits: routerLogits[t] ?? [], choices: choices[t] ?? [] }));
      }),
    ),
  );
  return { source, layers, statistics };
}

interface Token {
  readonly x: readonly number[];
  readonly logits: readonly number[];
  readonly choices: readonly { slot: number; gate: number; output: readonly number[] }[];
}

function slowExperts(source: MemoryModel, layer: MoeLayer, tokens: readonly Token[]): SlowExperts {
  const { experts, router } = layer.feedForward;
  const values = (ref: TensorRef | undefined) => [...((ref && source.tensors.get(ref.name)) ?? [])];
  const chosen = experts.map((_, expert) =>
    tokens.flatMap(({ choices }) => choices.filter(({ slot }) => slot === expert)),
  );
  const ran = experts.map((spec) => {
    const weights = expertValues(spec, values);
    return tokens.map(({ x, logits }) => {
      // An expert that a token did not choose gets the gate weight that it would have.
      const z = logits[experts.indexOf(spec)] as number;
      const gate = router.scalesInput ? 1 / (1 + Math.exp(-z)) : 1;
      return runExpert(
        spec,
        weights,
        x.map((value) => gate * value),
      );
    });
  });
  return {
    layer,
    logits: tokens.map(({ logits }) => logits),
    usage: chosen.map(({ length }) => length),
    gates: chosen.map((list) => list.reduce((sum, { gate }) => sum + gate, 0)),
    saliency: chosen.map((list) =>
      list.length === 0
        ? 0
        : list.reduce((sum, { gate, output }) => {
            return sum + (router.scalesInput ? 1 : gate) * Math.hypot(...output);
          }, 0) / list.length,
    ),
    units: ran.map((list) => list.map(({ units }) => units)),
    outputs: ran.map((list) => list.map(({ output }) => output)),
    vectors: experts.map((spec) => unitVectors(spec, values)),
  };
}

type Values = (ref: TensorRef | undefined) => number[];

function expertValues(spec: MlpSpec, values: Values) {
  const { gate, up, down, gateBias, upBias, downBias } = spec;
  return {
    gate: values(gate),
    up: values(up),
    down: values(down),
    gateBias: values(gateBias),
    upBias: values(upBias),
    downBias: values(downBias),
  };
}

function runExpert({ activation, width }: MlpSpec, w: ReturnType<typeof expertValues>, x: readonly number[]) {
  const product = (matrix: readonly number[], bias: readonly number[], rows: number, v: readonly number[]) =>
    Array.from({ length: rows }, (_, r) =>
      v.reduce((sum, value, c) => sum + (matrix[r * v.length + c] as number) * value, bias[r] ?? 0),
    );
  const ups = product(w.up, w.upBias, width, x);
  const gates = w.gate.length > 0 ? product(w.gate, w.gateBias, width, x) : ups;
  const units = ups.map((u, i) => {
    const g = gates[i] as number;
    if (activation.kind === "relu2") return Math.max(0, u) ** 2;
    if (activation.kind === "silu") return (g / (1 + Math.exp(-g))) * u;
    const { limit, alpha } = activation;
    const low = Math.min(g, limit);
    return ((Math.min(limit, Math.max(-limit, u)) + 1) * low) / (1 + Math.exp(-alpha * low));
  });
  return { units, output: product(w.down, w.downBias, x.length, units) };
}

function unitVectors(spec: MlpSpec, values: Values): number[][] {
  const { width } = spec;
  const { gate, up, down, gateBias, upBias } = expertValues(spec, values);
  const hidden = up.length / width;
  return Array.from({ length: width }, (_, u) => [
    ...gate.slice(u * hidden, gate.length === 0 ? 0 : (u + 1) * hidden),
    ...gateBias.slice(u, u + 1),
    ...up.slice(u * hidden, (u + 1) * hidden),
    ...upBias.slice(u, u + 1),
    ...Array.from({ length: hidden }, (_, h) => down[h * width + u] as number),
  ]);
}

export function inner(a: readonly number[], b: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

export function cosine(a: readonly number[], b: readonly number[]): number {
  return inner(a, b) / Math.sqrt(inner(a, a) * inner(b, b));
}

/** ‖a - b‖ */
export function apart(a: readonly number[], b: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] as number) - (b[i] as number)) ** 2;
  return Math.sqrt(sum);
}

/** The vector at length 1; one of zeros stays. */
export function atUnitLength(vector: readonly number[]): number[] {
  const norm = Math.sqrt(inner(vector, vector));
  return vector.map((value) => (norm > 0 ? value / norm : 0));
}
