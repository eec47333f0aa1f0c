import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  type CheckpointFolder,
  decodeValues,
  loadModel,
  memoryFolder,
  readSafetensorsHeader,
} from "@coppice/checkpoint";
import { elementCount, moeLayers } from "@coppice/core";
import type { Fixture, FixtureSource, GoldenRouter } from "../fixture.js";

/** The checkpoints that ship with this package: tiny, random, one per family. */
export const fixtureNames = ["mixtral", "qwen3_moe"] as const;
export type FixtureName = (typeof fixtureNames)[number];

/** Folder of a fixture: an ordinary Hugging Face checkpoint, with golden.safetensors beside it. */
export function fixturePath(name: FixtureName): string {
  return fileURLToPath(new URL(`../fixtures/${name}/`, import.meta.url));
}

/**
 * Opens a fixture and reads its reference outputs. Its files are small and are read into memory, so there is
 * nothing to close.
 */
export async function loadFixture(name: FixtureName): Promise<Fixture> {
  const folder = await readFolder(fixturePath(name));
  const checkpoint = await loadModel(folder);
  const golden = await readTensors(folder, "golden.safetensors");
  const tensor = (key: string) => {
    const values = golden.get(key);
    if (!values) throw new Error(`golden.safetensors of ${name} has no ${key}`);
    return values;
  };
  const ids = Int32Array.from(tensor("input_ids"));
  const length = ids.length / 2;
  return {
    name,
    model: checkpoint.model,
    weights: checkpoint.weights,
    golden: {
      sequences: [ids.slice(0, length), ids.slice(length)],
      logits: tensor("logits"),
      greedy: Int32Array.from(tensor("greedy")),
      routers: moeLayers(checkpoint.model).map(({ index }): GoldenRouter => {
        const prefix = `router.model.layers.${index}.mlp.gate`;
        return {
          logits: tensor(`${prefix}.0`),
          gates: tensor(`${prefix}.1`),
          experts: Int32Array.from(tensor(`${prefix}.2`)),
        };
      }),
    },
  };
}

/** All fixtures, each loaded when a conformance case asks for it. */
export const fixtures: readonly FixtureSource[] = fixtureNames.map((name) => ({
  name,
  load: () => loadFixture(name),
}));

async function readFolder(path: string): Promise<CheckpointFolder> {
  const files = new Map<string, Uint8Array>();
  for (const file of await readdir(path)) files.set(file, await readFile(join(path, file)));
  return memoryFolder(files, path);
}

async function readTensors(folder: CheckpointFolder, file: string): Promise<Map<string, Float32Array>> {
  const source = await folder.open(file);
  const { tensors } = await readSafetensorsHeader(source, file);
  const read = new Map<string, Float32Array>();
  for (const { name, dtype, shape, begin, end } of tensors) {
    const bytes = new Uint8Array(end - begin);
    await source.read(begin, bytes);
    const values = new Float32Array(elementCount(shape));
    decodeValues(dtype, bytes, values);
    read.set(name, values);
  }
  return read;
}
