// The page, built and served on loopback, and a Chromium that opens it. For the tests and for check-browser.mjs.
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { build, preview } from "vite";
import { chromiumFlags, chromiumPath, softwareWebgpu } from "../../../tools/chromium.mjs";

export { chromiumPath };

const root = fileURLToPath(new URL("..", import.meta.url));

/** @typedef {import("playwright-core").Page} Page */
/**
 * `webgpu`: with an adapter in software; default without any.
 * @typedef {import("playwright-core").BrowserContextOptions & { webgpu?: boolean }} TabOptions
 */

/**
 * @param {string} models a folder that make-models.mjs wrote
 * @param {string} executablePath
 */
export async function servePage(models, executablePath) {
  const outDir = await mkdtemp(join(tmpdir(), "coppice-page-"));
  const common = /** @type {const} */ ({ root, logLevel: "error" });
  await build({ ...common, publicDir: false, build: { outDir, emptyOutDir: false } });
  await cp(models, join(outDir, "models"), { recursive: true });
  const host = "127.0.0.1";
  const isolated = await preview({ ...common, build: { outDir }, preview: { host, port: 0 } });
  const plain = await preview({
    ...common,
    configFile: false,
    appType: "mpa",
    build: { outDir },
    preview: { host, port: 0 },
  });
  /** @param {readonly string[]} flags */
  const launch = (flags) => chromium.launch({ executablePath, args: [...chromiumFlags, ...flags] });
  /** @type {{ plain?: ReturnType<typeof launch>, webgpu?: ReturnType<typeof launch> }} */
  const browsers = {};
  /** @param {typeof isolated} server */
  const urlOf = (server) => /** @type {string} */ (server.resolvedUrls?.local[0]);

  return {
    /** With headers that let threads share memory, and without. */
    urls: { isolated: urlOf(isolated), plain: urlOf(plain) },
    /**
     * A tab in a profile of its own, on no page yet; `complaints` gets what the console and the network report, and every
     * request that leaves the server.
     * @param {TabOptions} options
     */
    async tab({ webgpu = false, ...options } = {}) {
      if (webgpu) browsers.webgpu ??= launch(softwareWebgpu);
      else browsers.plain ??= launch(["--disable-gpu"]);
      const browser = await (webgpu ? browsers.webgpu : browsers.plain);
      if (!browser) throw new Error("no browser was started");
      const context = await browser.newContext(options);
      const page = await context.newPage();
      page.setDefaultTimeout(60_000);
      /** @type {string[]} */
      const complaints = [];
      page.on("console", (message) => {
        // Chromium warns of every question for an adapter that it answers with none.
        if (message.text() === "No available adapters.") return;
        if (message.type() === "error" || message.type() === "warning") complaints.push(message.text());
      });
      page.on("pageerror", (error) => complaints.push(String(error)));
      // Of workers too, of which the console's messages do not come here.
      page.on("response", (response) => {
        if (response.status() >= 400) complaints.push(`${response.status()} ${response.url()}`);
      });
      page.on("request", (request) => {
        const { protocol, hostname } = new URL(request.url());
        if (protocol.startsWith("http") && hostname !== host) complaints.push(request.url());
      });
      return { context, page, complaints };
    },
    async close() {
      for (const browser of Object.values(browsers)) await (await browser).close();
      await Promise.all([isolated.close(), plain.close()]);
      await rm(outDir, { recursive: true, force: true });
    },
  };
}

/**
 * Waits until both models have ended their texts.
 * @param {Page} page
 */
export async function written(page) {
  await page.waitForFunction(() => {
    const texts = [...document.querySelectorAll(".text")];
    return texts.length > 0 && texts.every((text) => text instanceof HTMLElement && text.dataset["finish"]);
  });
}

/**
 * Types a prompt and waits for its texts.
 * @param {Page} page
 * @param {string} prompt
 */
export async function write(page, prompt) {
  // The texts of the former prompt are there until the new ones begin.
  await page.fill("#prompt", "");
  await page.waitForFunction(() => document.querySelector(".given") === null);
  await page.fill("#prompt", prompt);
  await page.waitForFunction(
    (prompt) =>
      [...document.querySelectorAll(".text")].every(
        (text) => [...text.querySelectorAll(".given")].map((token) => token.textContent).join("") === prompt,
      ),
    prompt,
  );
  await written(page);
}

/**
 * Ids of the tokens that each model wrote.
 * @param {Page} page
 * @returns {Promise<number[][]>}
 */
export function writtenTokens(page) {
  return page.$$eval(".text", (texts) =>
    texts.map((text) =>
      [...text.querySelectorAll(".written")].map((token) => Number(token.getAttribute("data-token"))),
    ),
  );
}
