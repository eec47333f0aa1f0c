import { existsSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

// Tests import packages by their published name, which resolves to dist: build before testing.
// Each package and example with tests for vitest is a project named after its folder; the root's test folder is "workspace".
const root = fileURLToPath(new URL(".", import.meta.url));
const folders = ["packages", "examples"].flatMap((parent) =>
  readdirSync(`${root}${parent}`)
    .map((name) => ({ name, folder: `${root}${parent}/${name}` }))
    .filter(({ folder }) => existsSync(`${folder}/test`)),
);
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
      ...folders.map(({ name, folder }) => project(name, folder, "test/**/*.test.ts")),
      project("workspace", `${root}test`, "**/*.test.ts"),
    ],
  },
});
