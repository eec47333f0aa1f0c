// Packs every published package and checks the tarball as a user would get it: entry points, files and types.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pnpm, root, run } from "./pnpm.mjs";

const only = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), "coppice-pack-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

for (const name of readdirSync(join(root, "packages")).sort()) {
  const manifest = join(root, "packages", name, "package.json");
  if (!existsSync(manifest) || (only.length > 0 && !only.includes(name))) continue;
  if (JSON.parse(readFileSync(manifest, "utf8")).private) continue;
  console.log(`\n== ${name}`);
  const tarball = join(folder, `${name}.tgz`);
  pnpm(["--dir", join("packages", name), "pack", "--out", tarball]);
  run("publint", ["run", "--strict", tarball]);
  run("attw", ["--profile", "esm-only", tarball]);
}
