import { webgpu } from "@coppice/backend-webgpu";
import { createRegistry } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { expect, it } from "vitest";

const create = (options: object) => createRegistry([webgpu]).create("backend", "webgpu", options, undefined);

it("refuses engines and precisions that it does not have", async () => {
  await expect(create({ engine: "both" })).rejects.toMatchObject({
    code: "COPPICE_PLUGIN_OPTIONS",
    message: expect.stringContaining("engine"),
  });
  await expect(create({ precision: "f64" })).rejects.toMatchObject({ code: "COPPICE_PLUGIN_OPTIONS" });
});

it("says that there is no adapter where there is no GPU", async () => {
  const backend = await create({ engine: "ort" });
  await expect(backend.load(randomModel({ seed: 1, layers: 1 }))).rejects.toMatchObject({
    code: "COPPICE_BACKEND_UNAVAILABLE",
  });
});
