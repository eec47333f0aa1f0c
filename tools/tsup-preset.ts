import { isBuiltin } from "node:module";
import { basename, relative } from "node:path";
import type { Plugin } from "esbuild";
import { defineConfig } from "tsup";

export interface PresetOptions {
  /**
   * Entry name -> source file. Each becomes `dist/<name>.js` and `dist/<name>.d.ts`.
   * @default { index: "src/index.ts" }
   */
  readonly entry?: Readonly<Record<string, string>>;
  /**
   * Which entries may import Node's own modules: `true` for all, or a list of entry names.
   * The build fails when any other entry reaches a `node:` module, directly or through a shared chunk.
   * @default []
   */
  readonly node?: true | readonly string[];
  /** Packages left out of the bundle besides the declared dependencies. */
  readonly external?: readonly (string | RegExp)[];
  /** How files that are not code are embedded, for instance `{ ".wgsl": "text" }`. */
  readonly loader?: Readonly<Record<`.${string}`, "text" | "binary" | "json" | "dataurl">>;
}

/** The one way a Coppice package is built: ES modules, types, source maps, shared chunks. */
export function coppice(options: PresetOptions = {}) {
  const entry = { ...(options.entry ?? { index: "src/index.ts" }) };
  const node = options.node === true ? Object.keys(entry) : (options.node ?? []);
  return defineConfig({
    entry,
    format: "esm",
    target: "es2023",
    platform: node.length > 0 ? "node" : "neutral",
    dts: true,
    sourcemap: true,
    splitting: true,
    clean: true,
    removeNodeProtocol: false,
    external: [/^node:/, ...(options.external ?? [])],
    loader: { ...options.loader },
    esbuildPlugins: [portableEntries(Object.keys(entry).filter((name) => !node.includes(name)))],
  });
}

/** Fails the build when one of the named entries can reach a module that only Node has. */
function portableEntries(names: readonly string[]): Plugin {
  return {
    name: "portable-entries",
    setup(build) {
      build.initialOptions.metafile = true;
      build.onEnd((result) => {
        const outputs = result.metafile?.outputs ?? {};
        const errors = [];
        for (const [path, output] of Object.entries(outputs)) {
          const name = basename(path, ".js");
          if (output.entryPoint === undefined || !names.includes(name)) continue;
          const seen = new Set<string>();
          const todo = [path];
          for (let at = todo.pop(); at !== undefined; at = todo.pop()) {
            if (seen.has(at)) continue;
            seen.add(at);
            for (const { path: target, external } of outputs[at]?.imports ?? []) {
              if (!external) todo.push(target);
              else if (isBuiltin(target)) {
                const via = Object.keys(outputs[at]?.inputs ?? {}).map((file) => relative(".", file));
                errors.push({
                  text: `entry "${name}" must run outside Node but reaches ${target} (in ${via.join(", ")}); move that code to a Node entry`,
                });
              }
            }
          }
        }
        return { errors };
      });
    },
  };
}
