// What benches compare: a checkpoint, given or made up, exported for CPUs.
import {
  cpSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder, writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";

/** A new folder that is gone when the process ends. */
export function scratchFolder() {
  const scratch = mkdtempSync(join(tmpdir(), "coppice-decode-"));
  process.on("exit", () => rmSync(scratch, { recursive: true }));
  return scratch;
}

/** A Qwen3-MoE: 6.8 million parameters of a layer are attention, router and norms, 50.3 million 32 experts, of which every token takes 4. */
const shape = {
  family: "qwen3_moe",
  hiddenSize: 1024,
  vocabSize: 32_000,
  heads: 16,
  kvHeads: 4,
  headDim: 128,
  experts: 32,
  topK: 4,
  expertWidth: 512,
  tied: true,
};
const layerParameters = 55.6e6;
const embeddingParameters = 32.8e6;

/**
 * An untrained checkpoint of a realistic shape.
 * @param size parameters, such as 400M or 1.5B; as near as whole layers come
 */
export async function randomCheckpoint(size) {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([MB])$/.exec(size) ?? [];
  if (!number)
    throw new Error(
      `--random is ${JSON.stringify(size)}, expected a number of parameters such as 400M or 1.5B`,
    );
  const parameters = Number(number) * (unit === "B" ? 1e9 : 1e6);
  const layers = Math.max(1, Math.round((parameters - embeddingParameters) / layerParameters));
  const folder = join(scratchFolder(), "random");
  await writeSyntheticCheckpoint(folder, { ...shape, layers });
  return folder;
}

/** Names and folders of the model as it is and at 4 bits in groups of so many. */
export async function exportedFolders(path, groupSize) {
  const scratch = scratchFolder();
  const write = async (from, name) => {
    const loaded = await loadModel(await openFolder(from));
    const folder = join(scratch, name);
    const { bytes } = await exportOnnx(loaded, folderTarget(folder), { target: "cpu" });
    await loaded.close();
    console.log(`${name}: ${(bytes / 1e6).toFixed(1)} MB`);
    return [name, folder];
  };
  const quantized = join(scratch, "checkpoint");
  const whole = await loadModel(await openFolder(path));
  await quantizeCheckpoint(whole, folderTarget(quantized), {
    quantizer: await rtn.create({ clip: false }, undefined),
    format: uniformFormat({ bits: 4, groupSize, symmetric: true }),
  });
  await whole.close();
  return [await write(path, "fp32"), await write(quantized, "q4")];
}

/** A copy of the folder, weights linked, whose texts never end by themselves, so that all write equally many tokens. */
export function endless(folder) {
  const copy = mkdtempSync(join(dirname(resolve(folder)), ".decode-bench-"));
  process.on("exit", () => rmSync(copy, { recursive: true, force: true }));
  cpSync(folder, copy, { recursive: true, filter: (path) => resolve(path) !== resolve(folder, "onnx") });
  mkdirSync(join(copy, "onnx"));
  for (const name of readdirSync(join(folder, "onnx"))) {
    linkSync(join(folder, "onnx", name), join(copy, "onnx", name));
  }
  for (const name of ["config.json", "generation_config.json", "tokenizer_config.json"]) {
    if (!existsSync(join(copy, name))) continue;
    const { eos_token_id: _, eos_token: __, ...rest } = JSON.parse(readFileSync(join(copy, name), "utf8"));
    writeFileSync(join(copy, name), JSON.stringify(rest));
  }
  return copy;
}
