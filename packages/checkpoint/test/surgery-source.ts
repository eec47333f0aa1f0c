import { memoryFolder, serializeSafetensors, type TensorBytes } from "@coppice/checkpoint";
import {
  createPlan,
  type DType,
  dtypeBytes,
  elementCount,
  type LayerPlan,
  type MlpSpec,
  type MoeModel,
  Rng,
  type RouterSpec,
  type TensorRef,
} from "@coppice/core";
import { applyPlan, type OutputOptions, predictOutput } from "../src/apply.js";
import type { CountPaths } from "../src/families/detect.js";
import type { ExpertTensors } from "../src/families/expert-tensors.js";
import type { LoadedCheckpoint } from "../src/load.js";
import { memoryTarget } from "../src/output/target.js";
import { parseSafetensors } from "../src/safetensors-bytes.js";
import { readSafetensorsHeader } from "../src/safetensors-header.js";
import { SourceCache } from "../src/source-cache.js";
import { bytesOf, text } from "./helpers.js";

export const noPaths: CountPaths = { experts: [], topK: [], groups: [], groupsKept: [], capacity: [] };

/** Where a family would state numbers. */
const familyPaths = { ...noPaths, experts: ["n", "num"], topK: ["k"], groups: ["g"], groupsKept: ["gk"] };

/** One MoE layer of a checkpoint that is described by hand, so that surgery is tested without any family. */
export interface HandLayer {
  readonly layer: number;
  readonly router: Omit<RouterSpec, "weight" | "topK" | "bias" | "correction"> & {
    readonly topK?: number;
    readonly bias?: string;
    readonly correction?: string;
  };
  readonly routerWeight: string;
  readonly experts: number;
  /** Matrices of experts as a reader gives them; needed for quantized weights alone. */
  readonly mlp?: (tensors: ReadonlyMap<string, TensorRef>, expert: number) => Partial<MlpSpec>;
}

/** A checkpoint whose model and edits the test states itself. */
export async function handMade(
  tensors: ReadonlyMap<string, TensorBytes>,
  layers: readonly HandLayer[],
  edits: (tensors: ReadonlyMap<string, TensorRef>) => ExpertTensors[],
  { config = {}, counts = {} }: { config?: object; counts?: Partial<CountPaths> } = {},
) {
  const files = {
    "model.safetensors": serializeSafetensors(tensors),
    "config.json": bytesOf(JSON.stringify(config)),
  };
  const folder = memoryFolder(files);
  const sources = new SourceCache(folder);
  const header = await sources.use("model.safetensors", (source) =>
    readSafetensorsHeader(source, "model.safetensors"),
  );
  const refs = new Map(header.tensors.map((ref) => [ref.name, ref]));
  const get = (name: string) => refs.get(name) as TensorRef;
  const model = {
    family: "hand_made",
    fingerprint: "0".repeat(64),
    layers: layers.map(({ layer, router, routerWeight, experts, mlp }) => ({
      index: layer,
      feedForward: {
        kind: "moe",
        router: {
          ...router,
          topK: router.topK ?? 2,
          weight: get(routerWeight),
          bias: router.bias && get(router.bias),
          correction: router.correction && get(router.correction),
        },
        experts: Array.from({ length: experts }, (_, expert) => mlp?.(refs, expert) ?? {}),
      },
    })),
  } as unknown as MoeModel;
  const loaded = {
    model,
    config: JSON.parse(JSON.stringify(config)),
    tensors: refs,
    incomplete: [],
    sources,
    folder,
    edits: edits(refs),
    detected: { counts: { ...noPaths, ...counts }, family: { config: familyPaths } },
  } as unknown as LoadedCheckpoint;
  return {
    loaded,
    tensors,
    apply: async (plans: readonly LayerPlan[], options: OutputOptions = {}) => {
      const plan = createPlan(model, plans);
      const target = memoryTarget();
      const summary = await applyPlan(loaded, plan, target, options);
      const predicted = await predictOutput(loaded, plan, options);
      const written = await parseSafetensors(target.files.get("model.safetensors") as Uint8Array, "output");
      return {
        summary,
        predicted,
        tensors: written.tensors,
        files: target.files,
        config: JSON.parse(text(target.files.get("config.json"))) as Record<string, unknown>,
      };
    },
  };
}

const rng = Rng.fromSeed(11);

/** Random bytes that are finite in every float format. */
export function random(dtype: DType, shape: readonly number[]): TensorBytes {
  const bytes = new Uint8Array(elementCount(shape) * dtypeBytes[dtype]);
  for (let i = 0; i < bytes.length; i++) bytes[i] = rng.integer(120) + (rng.integer(2) ? 128 : 0);
  return { dtype, shape, bytes };
}

/** Random float32 or bfloat16 values of a usual size. */
export function normal(dtype: "F32" | "BF16", shape: readonly number[], deviation = 1): TensorBytes {
  const values = Float32Array.from({ length: elementCount(shape) }, () => deviation * rng.normal());
  return { dtype, shape, bytes: floatBytes(dtype, values) };
}

export function floatBytes(dtype: "F32" | "BF16", values: Float32Array): Uint8Array {
  if (dtype === "F32") return new Uint8Array(values.slice().buffer);
  const words = new Uint32Array(values.slice().buffer);
  return new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
}

export function floats({ dtype, bytes }: TensorBytes): Float32Array {
  const copy = bytes.slice().buffer;
  if (dtype === "F32") return new Float32Array(copy);
  if (dtype !== "BF16") throw new Error(dtype);
  return new Float32Array(Uint32Array.from(new Uint16Array(copy), (word) => word << 16).buffer);
}

/** Entries along an axis, by element-wise copies. */
export function take(
  { dtype, shape, bytes }: TensorBytes,
  axis: number,
  entries: readonly number[],
): TensorBytes {
  const width = dtypeBytes[dtype];
  const inner = elementCount(shape.slice(axis + 1)) * width;
  const size = shape[axis] as number;
  const outer = elementCount(shape.slice(0, axis));
  const picked: number[] = [];
  for (let o = 0; o < outer; o++) {
    for (const entry of entries) {
      const at = (o * size + entry) * inner;
      picked.push(...bytes.subarray(at, at + inner));
    }
  }
  return {
    dtype,
    shape: shape.map((value, i) => (i === axis ? entries.length : value)),
    bytes: Uint8Array.from(picked),
  };
}
