import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

// Tests import packages by their published name, which resolves to dist: build before testing.
// Each package with a test folder is a project named after its folder; the root's test folder is "workspace".
const root = fileURLToPath(new URL(".", import.meta.url));
const packages = existsSync(`${root}packages`)
  ? readdirSync(`${root}packages`).filter((name) => existsSync(`${root}packages/${name}/test`))
  : [];
const project = (name: string, folder: string, include: string) => ({
  extends: true as const,
  test: { name, root: folder, include: [include] },
});

export default defineConfig({
  test: {
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
    passWithNoTests: true,
    projects: [
      ...packages.map((name) => project(name, `${root}packages/${name}`, "test/**/*.test.ts")),
      project("workspace", `${root}test`, "**/*.test.ts"),
    ],
  },
});
