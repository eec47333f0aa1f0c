import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { modelPath } from "@coppice/demo-model";
import { encodeModel, GraphBuilder } from "@coppice/onnx";

export interface ToyOptions {
  /** The graph takes `num_logits_to_keep`, as transformers.js names it. */
  readonly keepsLogits?: boolean;
  /** The graph puts out an expert per token and layer. */
  readonly experts?: boolean;
  readonly context?: number;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly generation?: Readonly<Record<string, unknown>>;
}

export const toyVocab = 4096;
/** Two heads, whose second one holds the negative. */
const heads = 2;

/**
 * A graph with the names of an exported decoder that can be computed by hand, in whole numbers that float32 holds exactly:
 * the key of token id t at place p is `(p + 1) t mod 97`, its value twice that, and the logit of token v is
 * `-((31 v + 17 s) mod 4099) / 64` with s the sum of six times the keys so far. No two tokens have the same logit.
 */
function toyGraph({ keepsLogits = false, experts = false }: ToyOptions): Uint8Array {
  const g = new GraphBuilder("toy");
  const ids = g.input("input_ids", ["batch", "tokens"], "int64");
  g.input("attention_mask", ["batch", "total"], "int64");
  const positions = g.input("position_ids", ["batch", "tokens"], "int64");
  const keep = keepsLogits ? g.input("num_logits_to_keep", [], "int64") : undefined;
  const pastKey = g.input("past_key_values.0.key", ["batch", heads, "past", 1]);
  const pastValue = g.input("past_key_values.0.value", ["batch", heads, "past", 1]);
  const float = (value: string) => g.node("Cast", [value], { attributes: { to: 1 } });
  const place = g.node("Add", [positions, g.int64([1], [])]);
  const weighted = float(g.node("Mod", [g.node("Mul", [ids, place]), g.int64([97], [])]));
  const column = g.node("Unsqueeze", [weighted, g.int64([1, 3])]);
  const both = g.node("Concat", [column, g.node("Neg", [column])], { attributes: { axis: 1 } });
  const twice = g.node("Mul", [both, g.float32(2)]);
  const key = g.node("Concat", [pastKey, both], { attributes: { axis: 2 } }, "present.0.key");
  const value = g.node("Concat", [pastValue, twice], { attributes: { axis: 2 } }, "present.0.value");
  // From both heads and both tensors, so that each has to come back right: k0 - k1 + v0 - v1 = 6 id.
  const signs = g.weight("signs", [1, heads, 1, 1], Float32Array.of(1, -1));
  const sum = g.node("ReduceSum", [g.node("Mul", [g.node("Add", [key, value]), signs]), g.int64([1])], {
    attributes: { keepdims: 0 },
  });
  const total = g.node("CumSum", [sum, g.int64([1], [])]);
  // The sums at the new tokens, [batch, tokens, 1].
  const tokens = g.node("Shape", [ids], { attributes: { start: 1 } });
  const first = g.node("Neg", [keep ? g.node("Reshape", [keep, g.int64([1])]) : tokens]);
  const last = g.node("Slice", [total, first, g.int64([2 ** 31]), g.int64([1])]);
  const ofToken = g.weight(
    "of token",
    [1, 1, toyVocab],
    Float32Array.from({ length: toyVocab }, (_, v) => 31 * v),
  );
  const mixed = g.node("Add", [g.node("Mul", [last, g.float32(17)]), ofToken]);
  const rest = g.node("Mod", [mixed, g.float32(4099)], { attributes: { fmod: 1 } });
  g.node("Mul", [rest, g.float32(-1 / 64)], {}, "logits");
  g.output("logits", ["batch", "kept", toyVocab]);
  g.output(key, ["batch", heads, "all", 1]);
  g.output(value, ["batch", heads, "all", 1]);
  if (experts) {
    g.node("Mod", [ids, g.int64([8], [])], {}, "experts.3");
    g.output("experts.3", ["batch", "tokens"], "int64");
  }
  return encodeModel(g.build());
}

/** Logits after `ids`, by the formula. */
export function toyLogits(ids: readonly number[]): number[] {
  const sum = ids.reduce((total, id, p) => total + 6 * (((p + 1) * id) % 97), 0);
  return Array.from({ length: toyVocab }, (_, v) => -((31 * v + 17 * sum) % 4099) / 64);
}

/** What greedy decoding writes after `ids`, by the formula. */
export function toyText(ids: ArrayLike<number>, count: number): number[] {
  const all = Array.from(ids);
  for (let i = 0; i < count; i++) {
    const logits = toyLogits(all);
    all.push(logits.indexOf(Math.max(...logits)));
  }
  return all.slice(ids.length);
}

/** An exported folder with this graph and the tokenizer of the demo model. */
export async function toyExport(
  options: ToyOptions = {},
): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(tmpdir(), "coppice-runtime-"));
  await mkdir(join(path, "onnx"));
  const json = (name: string, value: object) => writeFile(join(path, name), JSON.stringify(value));
  await json("config.json", {
    model_type: "mixtral",
    vocab_size: toyVocab,
    max_position_embeddings: options.context ?? 512,
    eos_token_id: 0,
    ...options.config,
  });
  if (options.generation) await json("generation_config.json", options.generation);
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    await copyFile(join(modelPath, name), join(path, name));
  }
  await writeFile(join(path, "onnx", "model.onnx"), toyGraph(options));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}
