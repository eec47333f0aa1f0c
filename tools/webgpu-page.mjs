// A page with WebGPU in software, for tests of packages that need a device.
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { chromiumFlags, chromiumPath, softwareWebgpu } from "./chromium.mjs";

const origin = "http://localhost/";
/** Of files that are not texts, by their ending. */
const types = new Map([
  [".mjs", "text/javascript"],
  [".wasm", "application/wasm"],
]);
const executablePath = chromiumPath();
if (executablePath === undefined && process.env["COPPICE_REQUIRE_BROWSER"] === "1") {
  throw new Error("no Chromium was found, and COPPICE_REQUIRE_BROWSER is 1");
}

/** False where there is no Chromium: tests of the page are skipped. */
export const hasChromium = executablePath !== undefined;

/**
 * Bundles a module and runs it in a page, where its export `run` is called by name; nothing is fetched from a network.
 * @param {string} entry path of a module with `export function run(name: string): Promise<void>`
 * @param {(path: string) => Promise<string | Buffer> | undefined} serve files that the page may fetch, by their path
 */
export async function openWebgpuPage(entry, serve = () => undefined) {
  const bundled = await build({
    entryPoints: [entry],
    bundle: true,
    write: false,
    platform: "browser",
    format: "iife",
    globalName: "tests",
    logLevel: "error",
  });
  const script = bundled.outputFiles[0]?.text ?? "";
  const browser = await chromium.launch({
    executablePath: executablePath ?? "",
    // WebAssembly, where there is any, does little here: compiling it anew to faster code would take longer than the tests.
    args: [...chromiumFlags, ...softwareWebgpu, "--js-flags=--liftoff-only"],
  });
  const page = await browser.newPage();
  await page.route("**/*", async (route) => {
    const path = new URL(route.request().url()).pathname;
    const body = path === "/" ? "<!doctype html><title>tests</title>" : await serve(path.slice(1));
    const contentType = types.get(path.slice(path.lastIndexOf("."))) ?? "text/html";
    await route.fulfill(body === undefined ? { status: 404 } : { status: 200, body, contentType });
  });
  await page.goto(origin);
  await page.addScriptTag({ content: script });
  return {
    /**
     * Runs a case; its error is thrown here.
     * @param {string} name
     */
    async run(name) {
      const problem = await page.evaluate(
        (name) =>
          // @ts-expect-error: the bundle's global
          globalThis.tests.run(name).then(
            () => "",
            (/** @type {unknown} */ error) => String(error instanceof Error ? error.stack : error),
          ),
        name,
      );
      if (problem !== "") throw new Error(problem);
    },
    close: () => browser.close(),
  };
}
