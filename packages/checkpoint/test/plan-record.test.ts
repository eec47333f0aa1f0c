import { createHash } from "node:crypto";
import {
  applyPlan,
  companionFiles,
  compareTensors,
  loadModel,
  memoryFolder,
  memoryTarget,
  readProvenance,
  rewriteCheckpoint,
  writeFiles,
} from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { createPlan, elementCount, type MlpSpec, moeLayers, type Plan, packBfloat16 } from "@coppice/core";
import { expect, it } from "vitest";
import { bytesOf, expectError, type Files, fixtures, text } from "./helpers.js";

const original = await loadModel(await openFolder(`${fixtures}/mixtral`));

/** Half of the experts of every layer, with changed down projections or without. */
function halved(fitted: boolean): Plan {
  return createPlan(
    original.model,
    moeLayers(original.model).map(({ index, feedForward }) => {
      const experts = [1, 3, 4, 6];
      const size = elementCount((feedForward.experts[0] as MlpSpec).down.shape);
      const deltas = Float32Array.from({ length: experts.length * size }, (_, i) => ((i % 9) - 4) * 2 ** -7);
      return { layer: index, experts, ...(fitted && { down: packBfloat16(deltas) }) };
    }),
  );
}

const apply = async (plan: Plan): Promise<Files> => {
  const target = memoryTarget();
  await applyPlan(original, plan, target);
  return new Map(target.files);
};

const fits = halved(true);
const written = await apply(fits);

it("a folder has the hashes of fitted projections in place of their values", async () => {
  const [plain, provenance] = [await apply(halved(false)), await readProvenance(memoryFolder(written))];
  const bytes = (files: Files) => [...files.values()].reduce((sum, { length }) => sum + length, 0);
  expect(JSON.stringify(fits).length).toBeGreaterThan(50_000);
  expect(bytes(written) - bytes(plain)).toBeLessThan(1000);
  expect(provenance?.plan).toEqual({
    ...fits,
    layers: fits.layers.map(({ down, ...layer }) => ({
      ...layer,
      down: {
        shape: [4, 64, 32],
        sha256: createHash("sha256")
          .update(down as string)
          .digest("hex"),
      },
    })),
  });
  const output = await loadModel(memoryFolder(written));
  expect(output.model.derivedFrom).toEqual([original.model.fingerprint]);
  expect(await compareTensors(original, fits, output)).toMatchObject({ equal: true });
  await expectError(
    compareTensors(original, provenance?.plan as Plan, output),
    "COPPICE_PLAN_RECORD",
    "layers[0].down",
  );
});

it("a folder that has the whole plan opens, and hands hashes on to what is made from it", async () => {
  const own = JSON.parse(text(written.get("coppice.json"))) as object;
  const older = new Map(written).set("coppice.json", bytesOf(JSON.stringify({ ...own, plan: fits })));
  const loaded = await loadModel(memoryFolder(older));
  expect(loaded.model.derivedFrom).toEqual([original.model.fingerprint]);
  expect(await compareTensors(original, fits, loaded)).toMatchObject({ equal: true });
  const { plan } = (await readProvenance(memoryFolder(written))) ?? {};

  const companions = memoryTarget();
  await writeFiles(await companionFiles(loaded, []), companions);
  expect(await readProvenance(memoryFolder(companions.files))).toMatchObject({ ...own, plan });

  const rewritten = memoryTarget();
  const tensors = [...loaded.tensors.values()].map((source) => ({ ...source, source }));
  await rewriteCheckpoint(loaded, rewritten, tensors, async () => {});
  expect(await readProvenance(memoryFolder(rewritten.files))).toMatchObject({
    plan,
    derivedFrom: [loaded.model.fingerprint, original.model.fingerprint],
  });
  expect(rewritten.files.get("coppice.json")?.length).toBeLessThan(5000);
});
