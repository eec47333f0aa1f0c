// What benches compare: a checkpoint, exported for CPUs.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";

/** Names and folders of the model as it is and at 4 bits. */
export async function exportedFolders(path) {
  const scratch = mkdtempSync(join(tmpdir(), "coppice-decode-"));
  process.on("exit", () => rmSync(scratch, { recursive: true }));
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
    format: uniformFormat({ bits: 4, groupSize: 32, symmetric: true }),
  });
  await whole.close();
  return [await write(path, "fp32"), await write(quantized, "q4")];
}
