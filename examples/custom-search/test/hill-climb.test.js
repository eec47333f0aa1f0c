import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { searchConformance } from "@coppice/plugin-kit";
import { hillClimb } from "coppice-plugin-hill-climb";

for (const { name, run } of searchConformance(hillClimb, { keep: 3 })) test(name, run);

test("package.json says what the package exports, so that `coppice plugins` can list it unopened", async () => {
  const plugins = await import("coppice-plugin-hill-climb");
  const { coppice } = JSON.parse(await readFile(new URL("../package.json", import.meta.url), "utf8"));
  const found = coppice.plugins.map((entry) => plugins[entry.export]);
  assert.deepEqual(
    found.map(({ kind, pluginName, contract, summary }) => ({ kind, name: pluginName, contract, summary })),
    coppice.plugins.map(({ export: _, ...entry }) => entry),
  );
});
