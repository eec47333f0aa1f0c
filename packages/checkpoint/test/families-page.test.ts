import { readFile } from "node:fs/promises";
import { families, familyPaddingObstacle, loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { moeLayers } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { familiesPage } from "../scripts/families-page.mjs";
import { paddingObstacle } from "../src/output/padding.js";
import { fixtures } from "./helpers.js";

describe("docs/reference/families.md", () => {
  it("is what the descriptions say (else build and run: pnpm --filter @coppice/checkpoint families-page)", async () => {
    const page = new URL("../../../docs/reference/families.md", import.meta.url);
    expect(await readFile(page, "utf8")).toBe(familiesPage(families));
  });

  it("promises exact filling up where surgery does it", async () => {
    for (const family of families.filter(({ editOnly }) => editOnly === undefined)) {
      await using checkpoint = await loadModel(await openFolder(`${fixtures}${family.name}`));
      const { router } = moeLayers(checkpoint.model)[0]!.feedForward;
      expect([family.name, familyPaddingObstacle(family)]).toEqual([family.name, paddingObstacle(router)]);
    }
  });
});
