// Packs every published package, as it would go to the registry.
// Usage: node tools/pack.mjs <folder for the tarballs>, after a build
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pnpm, root } from "./pnpm.mjs";

const [folder] = process.argv.slice(2);
if (folder === undefined) {
  console.error("Usage: node tools/pack.mjs <folder>");
  process.exit(2);
}
mkdirSync(folder, { recursive: true });
const filters = readdirSync(join(root, "packages")).flatMap((name) => {
  const path = join(root, "packages", name, "package.json");
  if (!existsSync(path)) return [];
  const manifest = JSON.parse(readFileSync(path, "utf8"));
  return manifest.private ? [] : ["--filter", manifest.name];
});
pnpm([...filters, "pack", "--pack-destination", resolve(folder)]);
