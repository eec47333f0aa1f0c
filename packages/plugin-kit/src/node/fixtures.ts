import { readdir, readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  type CheckpointFolder,
  decodeValues,
  loadModel,
  memoryFolder,
  readSafetensorsHeader,
} from "@coppice/checkpoint";
import { elementCount, type MoeLayer, moeLayers } from "@coppice/core";
import type { Fixture, FixtureSource, GoldenRouter } from "../fixture.js";

/** The checkpoints that ship with this package: tiny, random, one per family. */
export const fixtureNames = [
  "deepseek_v2",
  "deepseek_v3",
  "ernie4_5_moe",
  "glm4_moe",
  "gpt_oss",
  "granitemoe",
  "hunyuan_v1_moe",
  "llama4_text",
  "minimax_m2",
  "mixtral",
  "olmoe",
  "phimoe",
  "qwen2_moe",
  "qwen3_moe",
] as const;
export type FixtureName = (typeof fixtureNames)[number];

/** Folder of a fixture: an ordinary Hugging Face checkpoint, with golden.safetensors beside it. */
export function fixturePath(name: FixtureName): string {
  return fileURLToPath(new URL(`../fixtures/${name}/`, import.meta.url));
}

/** Opens one of the fixtures that ship with this package. */
export function loadFixture(name: FixtureName): Promise<Fixture> {
  return loadFixtureFolder(fixturePath(name), name);
}

/** All fixtures, each loaded when a conformance case asks for it. */
export const fixtures: readonly FixtureSource[] = fixtureNames.map((name) => ({
  name,
  load: () => loadFixture(name),
}));

/**
 * Opens a checkpoint and reads its reference outputs from golden.safetensors beside it: `input_ids` [2, tokens],
 * `logits` [2, tokens, vocab], `greedy` [1, more], and for every MoE layer, if its router gives them away,
 * `router.<module>.<0 to 2>` with router logits, gate weights and chosen experts of all tokens. All files are read into
 * memory, so there is nothing to close.
 */
export async function loadFixtureFolder(path: string, name = basename(path)): Promise<Fixture> {
  const folder = await readFolder(path);
  const { model, weights } = await loadModel(folder);
  const golden = await readTensors(folder, "golden.safetensors");
  const tensor = (key: string) => {
    const found = golden.get(key);
    if (!found) throw new Error(`golden.safetensors of ${name} has no ${key}`);
    return found;
  };
  const { values: ids, shape } = tensor("input_ids");
  const [count, length] = shape as [number, number];
  return {
    name,
    model,
    weights,
    golden: {
      sequences: Array.from({ length: count }, (_, s) =>
        Int32Array.from(ids.subarray(s * length, (s + 1) * length)),
      ),
      logits: tensor("logits").values,
      greedy: Int32Array.from(tensor("greedy").values),
      routers: moeLayers(model).flatMap((layer) => goldenRouter(golden, layer) ?? []),
    },
  };
}

interface GoldenTensor {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** Granite's router returns experts, gate weights and logits; all others return them the other way round. */
function goldenRouter(
  golden: ReadonlyMap<string, GoldenTensor>,
  { index, feedForward }: MoeLayer,
): GoldenRouter | undefined {
  const parts = [0, 1, 2].map((part) => {
    const key = [...golden.keys()].find(
      (found) =>
        found.startsWith("router.") && found.includes(`.layers.${index}.`) && found.endsWith(`.${part}`),
    );
    return key === undefined ? undefined : golden.get(key);
  });
  const [first, gates, last] = parts;
  if (!first || !gates || !last) return undefined;
  const [logits, experts] = last.shape.at(-1) === feedForward.experts.length ? [last, first] : [first, last];
  return {
    layer: index,
    logits: logits.values,
    gates: gates.values,
    experts: Int32Array.from(experts.values),
  };
}

async function readFolder(path: string): Promise<CheckpointFolder> {
  const files = new Map<string, Uint8Array>();
  for (const file of await readdir(path)) files.set(file, await readFile(join(path, file)));
  return memoryFolder(files, path);
}

async function readTensors(folder: CheckpointFolder, file: string): Promise<Map<string, GoldenTensor>> {
  const source = await folder.open(file);
  const { tensors } = await readSafetensorsHeader(source, file);
  const read = new Map<string, GoldenTensor>();
  for (const { name, dtype, shape, begin, end } of tensors) {
    const bytes = new Uint8Array(end - begin);
    await source.read(begin, bytes);
    const values = new Float32Array(elementCount(shape));
    decodeValues(dtype, bytes, values);
    read.set(name, { shape, values });
  }
  return read;
}
