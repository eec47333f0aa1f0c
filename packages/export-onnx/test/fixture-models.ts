import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { reference } from "@coppice/backend-reference";
import {
  type LoadedCheckpoint,
  loadModel,
  memoryFolder,
  memoryTarget,
  parseSafetensors,
  serializeSafetensors,
} from "@coppice/checkpoint";
import type { QuantizedBits } from "@coppice/core";
import { fixturePath } from "@coppice/plugin-kit/node";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";

export type Family = "mixtral" | "qwen3_moe";

/** Files of a fixture; Qwen3-MoE with its head tied to the embedding, as small ones have it. */
async function fixtureFiles(family: Family): Promise<Map<string, Uint8Array>> {
  const path = fixturePath(family);
  const names = ["config.json", "generation_config.json", "model.safetensors"];
  const files = new Map<string, Uint8Array>();
  for (const name of names) files.set(name, await readFile(join(path, name)));
  if (family !== "qwen3_moe") return files;
  const { tensors } = await parseSafetensors(
    files.get("model.safetensors") as Uint8Array,
    "model.safetensors",
  );
  const others = [...tensors].filter(([name]) => name !== "lm_head.weight");
  files.set("model.safetensors", serializeSafetensors(new Map(others)));
  const config = JSON.parse(new TextDecoder().decode(files.get("config.json")));
  const text = JSON.stringify({ ...config, tie_word_embeddings: true });
  return files.set("config.json", new TextEncoder().encode(text));
}

/** A fixture whose matrices, the embedding among them, are quantized in groups of 16. */
export async function quantized(family: Family, bits: QuantizedBits, symmetric: boolean) {
  const target = memoryTarget();
  await using loaded = await loadModel(memoryFolder(await fixtureFiles(family)));
  const format = uniformFormat({ bits, groupSize: 16, symmetric, head: bits, embedding: bits });
  await quantizeCheckpoint(loaded, target, { quantizer: await rtn.create({}, undefined), format });
  return loadModel(memoryFolder(target.files));
}

/** [tokens, vocab] */
export async function referenceLogits(
  { model, weights }: Pick<LoadedCheckpoint, "model" | "weights">,
  ids: Int32Array,
): Promise<Float32Array> {
  const backend = await reference.create({}, undefined);
  await using runner = await backend.load({ model, weights });
  const { logits } = await runner.run({ sequences: [ids], positions: [Int32Array.from(ids.keys())] });
  return logits as Float32Array;
}
