import { reference } from "@coppice/backend-reference";
import { loadModel, memoryFolder, memoryTarget } from "@coppice/checkpoint";
import { writeSyntheticCheckpoint } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";
import * as node from "onnxruntime-node";
import * as web from "onnxruntime-web";
import { beforeAll, describe, expect, test } from "vitest";
import { layerAgreement } from "../scripts/layer-agreement.mjs";
import type { Runtime } from "./exported-session.js";

const ids = Int32Array.from([5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3, 6]);

beforeAll(() => {
  web.env.wasm.numThreads = 1;
});

/** All groups divide the rows. All experts run: rows in int8 may have a token choose another of two that are nearly as good. */
const shape = {
  hiddenSize: 256,
  vocabSize: 32,
  heads: 4,
  kvHeads: 2,
  experts: 2,
  topK: 2,
  expertWidth: 256,
  dtype: "F32",
} as const;

const forms = ([2, 4, 8] as const).flatMap((bits) => [true, false].map((symmetric) => ({ bits, symmetric })));

describe.each([
  { family: "mixtral", layers: 1, tied: false, groups: [16, 32, 64, 128, 256] },
  { family: "qwen3_moe", layers: 3, tied: true, groups: [64] },
])("every layer of a $family", ({ groups, ...sizes }) => {
  test.each(forms)(
    "of $bits bits, symmetric $symmetric, is that of the dequantized weights",
    async (form) => {
      const source = memoryTarget();
      await writeSyntheticCheckpoint(source, { ...shape, ...sizes });
      await using whole = await loadModel(memoryFolder(source.files));
      const quantizer = await rtn.create({ clip: false }, undefined);
      for (const groupSize of groups) {
        const target = memoryTarget();
        const format = uniformFormat({ ...form, groupSize });
        await quantizeCheckpoint(whole, target, { quantizer, format });
        await using loaded = await loadModel(memoryFolder(target.files));
        const backend = await reference.create({}, undefined);
        await using runner = await backend.load({ model: loaded.model, weights: loaded.weights });
        for (const [target, runtime] of [
          ["cpu", node],
          ["wasm", web as unknown as Runtime],
        ] as const) {
          const output = memoryTarget();
          await exportOnnx(loaded, output, { target, expertOutputs: true });
          const found = await layerAgreement({ loaded, files: output.files, runner, runtime, ids });
          expect(found).toHaveLength(sizes.layers);
          for (const { output, added, moved } of found) {
            expect(moved).toBe(0);
            expect(output).toBeGreaterThan(0.9999);
            // Rows are int8 where ONNX Runtime has no fast way for others, and where they cost a prompt next to nothing.
            const exact = target === "wasm" || (form.bits === 4 && groupSize < 128);
            expect(added).toBeGreaterThan(exact ? 1 - 1e-6 : 0.9999);
          }
        }
      }
    },
    120_000,
  );
});
