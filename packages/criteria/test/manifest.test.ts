import { readFileSync } from "node:fs";
import { isPlugin } from "@coppice/core";
import * as criteria from "@coppice/criteria";
import { expect, test } from "vitest";

test("package.json lists the plugins that the package exports", () => {
  const manifest = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  const exported = Object.entries(criteria).flatMap(([name, value]) =>
    isPlugin(value)
      ? [
          {
            kind: value.kind,
            name: value.pluginName,
            contract: value.contract,
            export: name,
            summary: value.summary,
          },
        ]
      : [],
  );
  const byName = (list: { name: string }[]) => list.toSorted((a, b) => a.name.localeCompare(b.name));
  expect(byName(manifest.coppice.plugins)).toEqual(byName(exported));
  expect(exported).toHaveLength(16);
});
