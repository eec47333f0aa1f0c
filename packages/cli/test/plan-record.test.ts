import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { packBfloat16 } from "@coppice/core";
import { expect, it } from "vitest";
import { coppiceHere as coppice, coppiceJson } from "./cli.js";
import { copyModel, readSafetensors, workshop, writeSafetensors } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));

const { fingerprint, family, hiddenSize } = await coppiceJson(["inspect", model]);
const width = 32;
const deltas = Float32Array.from({ length: 4 * (hiddenSize as number) * width }, (_, i) => Math.sin(i) / 8);

/** A plan file that keeps four experts per layer, with fitted projections in layer 1 or without. */
function planFile(name: string, values?: Float32Array): string {
  const path = join(work, name);
  const layers = [0, 1, 2].map((layer) => ({
    layer,
    experts: [0, 2, 5, 7],
    ...(layer === 1 && values && { down: packBfloat16(values) }),
  }));
  writeFileSync(
    path,
    JSON.stringify({ format: "coppice.plan", version: 1, model: { family, fingerprint }, layers }),
  );
  return path;
}

const folderBytes = (path: string) =>
  readdirSync(path).reduce((sum, name) => sum + statSync(join(path, name)).size, 0);

it("a folder of a plan with fits is as small as one without, and is verified with the plan file", async () => {
  const [fitted, plain] = [planFile("fitted.json", deltas), planFile("plain.json")];
  const [small, bare] = [join(work, "small"), join(work, "bare")];
  await coppiceJson(["apply", model, "--plan", fitted, "--out", small]);
  await coppiceJson(["apply", model, "--plan", plain, "--out", bare]);
  expect(statSync(fitted).size).toBeGreaterThan(20_000);
  expect(folderBytes(small) - folderBytes(bare)).toBeLessThan(500);

  const equal = { equal: true, plan: true };
  expect(await coppiceJson(["verify", model, small, "--plan", fitted])).toMatchObject(equal);
  // The record alone is not enough, wherever a plan is read.
  for (const command of [
    ["verify", model, small],
    ["apply", model, "--plan", join(small, "coppice.json"), "--out", join(work, "again")],
  ]) {
    const { code, stderr } = await coppice(command);
    expect(code).toBe(2);
    expect(stderr).toMatch(/COPPICE_PLAN_RECORD: layers\[1\]\.down.*[0-9a-f]{64}.*--plan/s);
  }

  const other = deltas.slice();
  other[100] = (other[100] as number) + 0.125;
  const { code, stderr } = await coppice(["verify", model, small, "--plan", planFile("other.json", other)]);
  expect(code).toBe(1);
  expect(stderr).toMatch(/COPPICE_VERIFY_DIFFERENT: down of layer 1/);
  expect(new Set(stderr.match(/[0-9a-f]{64}/g)).size).toBe(2);

  // A folder as older releases wrote it has the whole plan, and needs no file.
  const record = join(small, "coppice.json");
  const whole = {
    ...JSON.parse(readFileSync(record, "utf8")),
    plan: JSON.parse(readFileSync(fitted, "utf8")),
  };
  writeFileSync(record, JSON.stringify(whole));
  expect(await coppiceJson(["verify", model, small])).toMatchObject(equal);

  const weights = join(small, "model.safetensors");
  const { header, data } = readSafetensors(weights);
  const [begin] = header["model.layers.1.block_sparse_moe.experts.2.w2.weight"]!.data_offsets;
  data.writeFloatLE(data.readFloatLE(begin) + 0.5, begin);
  writeSafetensors(weights, header, data);
  const damaged = await coppice(["verify", model, small, "--plan", fitted, "--json"]);
  expect({ code: damaged.code, ...damaged.json() }).toMatchObject({ code: 1, equal: false });
});
