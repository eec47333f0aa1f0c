import { existsSync, readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";

const packages = new URL("../packages/", import.meta.url);
const names = readdirSync(packages).filter((name) => existsSync(new URL(`${name}/package.json`, packages)));

interface Manifest {
  readonly [field: string]: unknown;
  readonly name: string;
  readonly exports?: Readonly<Record<string, string | Readonly<Record<string, string>>>>;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly devDependencies?: Readonly<Record<string, string>>;
}

describe.each(names)("packages/%s", (folder) => {
  const manifest: Manifest = JSON.parse(readFileSync(new URL(`${folder}/package.json`, packages), "utf8"));

  it("is named after its folder and states what every package states", () => {
    expect(manifest.name).toBe(folder === "cli" ? "coppice" : `@coppice/${folder}`);
    expect(manifest).toMatchObject({
      type: "module",
      license: "Apache-2.0",
      engines: { node: ">=20.19" },
      description: expect.any(String),
    });
    if (!manifest["private"]) {
      expect(manifest).toMatchObject({ publishConfig: { access: "public" } });
      expect(manifest).toHaveProperty("sideEffects");
      expect(manifest["files"]).toContain("dist");
    }
  });

  it("names types first in every entry", () => {
    for (const [entry, target] of Object.entries(manifest.exports ?? {})) {
      if (typeof target === "object") expect([entry, Object.keys(target)[0]]).toEqual([entry, "types"]);
    }
  });

  it("takes other packages from the workspace", () => {
    const all = { ...manifest.dependencies, ...manifest.devDependencies };
    for (const [name, range] of Object.entries(all)) {
      if (name === "coppice" || name.startsWith("@coppice/")) {
        expect([name, range]).toEqual([name, expect.stringMatching(/^workspace:/)]);
      }
    }
  });
});
