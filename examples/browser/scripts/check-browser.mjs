// Slow check of the page in Chromium: the first token within three seconds, 50 prompts token by token as Node writes them,
// no complaint of axe or the console. With --webgpu on an adapter in software, against the cpu backend, without limit of time.
// Usage: npm run check:browser [-- --prompts 50 --tokens 32 --webgpu --screenshots <folder>]
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { taskNames, taskPath } from "@coppice/demo-model";
import { openModelFolder } from "@coppice/runtime/node";
import { openNodeModels } from "./node-models.mjs";
import { chromiumPath, servePage, write, written, writtenTokens } from "./served-page.mjs";

const mostMilliseconds = 3000;
const loads = 3;
const folders = /** @type {const} */ (["original", "pruned"]);
const looks = {
  desktop: { viewport: { width: 1280, height: 900 } },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: /** @type {const} */ ("dark") },
  phone: { viewport: { width: 375, height: 700 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
};

const { values } = parseArgs({
  options: {
    prompts: { type: "string", default: "50" },
    tokens: { type: "string", default: "32" },
    webgpu: { type: "boolean", default: false },
    screenshots: { type: "string" },
  },
});
const { webgpu } = values;
const maxTokens = Number(values.tokens);
const chromium = chromiumPath();
if (chromium === undefined) {
  console.error("No Chromium or Chrome was found; name one in COPPICE_CHROMIUM.");
  process.exit(1);
}
const models = fileURLToPath(new URL("../public/models", import.meta.url));
const script = fileURLToPath(new URL("make-models.mjs", import.meta.url));
const made = spawnSync(process.execPath, [script, "--if-absent"], { stdio: "inherit" });
if (made.status !== 0) process.exit(1);

/** The same number from every task, in turns. */
const samples = taskNames.map((task) => readFileSync(taskPath(task, "dev"), "utf8").split("\n"));
const prompts = Array.from({ length: Number(values.prompts) }, (_, i) => {
  const lines = /** @type {string[]} */ (samples[i % samples.length]);
  return /** @type {string} */ (
    JSON.parse(/** @type {string} */ (lines[Math.floor(i / samples.length)])).prompt
  );
});

let failed = false;
/**
 * @param {string} name
 * @param {string} found
 * @param {boolean} isRight
 */
function report(name, found, isRight = true) {
  failed ||= !isRight;
  console.log(`${name.padEnd(20)}${found}${isRight ? "" : "  FAILED"}`);
}

const served = await servePage(models, chromium);
/** @param {import("./served-page.mjs").TabOptions} [options] */
async function openTab(options) {
  const tab = await served.tab({ ...options, webgpu });
  // A long prompt takes the software adapter half a minute, minutes on a busy processor.
  if (webgpu) tab.page.setDefaultTimeout(600_000);
  await tab.page.goto(served.urls.isolated);
  await written(tab.page);
  if (webgpu) {
    await tab.page.fill("#tokens", "1");
    await tab.page.check("[name=engine][value=webgpu]");
    await tab.page.waitForFunction(() => document.querySelector(".written") === null);
    await written(tab.page);
  }
  return tab;
}

/** What writes in Node: `write(prompt)` gives the tokens of every model. */
async function openInNode() {
  if (webgpu) return openNodeModels(models);
  const opened = await Promise.all(
    folders.map((folder) => openModelFolder(join(models, folder), { keptPrefixes: 0 })),
  );
  return {
    /**
     * @param {string} prompt
     * @param {number} most
     */
    async write(prompt, most) {
      const texts = [];
      for (const model of opened) texts.push([...(await model.generate(prompt, { maxTokens: most })).tokens]);
      return texts;
    },
    async dispose() {
      for (const model of opened) await model.dispose();
    },
  };
}

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
try {
  if (!webgpu) {
    /** @type {number[]} */
    const times = [];
    for (let i = 0; i < loads; i++) {
      const { page, context } = await openTab();
      // Since the page was asked for: its files, the models' and WebAssembly's included.
      times.push(
        await page.evaluate(() => performance.getEntriesByName("first-token")[0]?.startTime ?? Number.NaN),
      );
      await context.close();
    }
    const median = /** @type {number} */ (times.sort((a, b) => a - b)[loads >> 1]);
    const shown = times.map((time) => (time / 1000).toFixed(2)).join(", ");
    report("first token", `${shown} s after the page is asked for`, median <= mostMilliseconds);
  }

  const { page, context, complaints } = await openTab();
  report("runs with", (await page.textContent("#how")) ?? "");
  await page.fill("#tokens", String(maxTokens));
  const inNode = await openInNode();
  const equal = folders.map(() => 0);
  const tokens = folders.map(() => 0);
  /** @type {number[][]} */
  const speeds = folders.map(() => []);
  for (const [at, prompt] of prompts.entries()) {
    if (webgpu) console.error(`prompt ${at + 1} of ${prompts.length}`);
    await write(page, prompt);
    const found = await writtenTokens(page);
    const speed = await page.$$eval(".speed", (all) => all.map(({ textContent }) => Number(textContent)));
    for (const [i, expected] of (await inNode.write(prompt, maxTokens)).entries()) {
      if (String(expected) === String(found[i])) equal[i] = (equal[i] ?? 0) + 1;
      else console.log(`${folders[i]}: ${JSON.stringify(prompt)}: ${found[i]} instead of ${expected}`);
      tokens[i] = (tokens[i] ?? 0) + expected.length;
      const one = speed[i] ?? Number.NaN;
      if (!Number.isNaN(one)) speeds[i]?.push(one);
    }
  }
  for (const [i, folder] of folders.entries()) {
    const what = `${equal[i]} of ${prompts.length} prompts as in Node, ${tokens[i]} tokens`;
    const speed = speeds[i]?.sort((a, b) => a - b)[(speeds[i]?.length ?? 0) >> 1];
    report(
      folder,
      `${what}, ${speed?.toFixed(webgpu ? 1 : 0)} tokens/s (median)`,
      equal[i] === prompts.length,
    );
  }
  await inNode.dispose();
  report(
    "console",
    complaints.length === 0 ? "no error, no warning" : complaints.join("; "),
    complaints.length === 0,
  );
  await context.close();

  for (const [name, look] of Object.entries(looks)) {
    const { page, context } = await openTab(look);
    await page.addScriptTag({ path: axe });
    const violations = await page.evaluate(async () => {
      const { violations } = await Reflect.get(globalThis, "axe").run();
      return violations.map(
        (/** @type {{ id: string, impact: string }} */ { id, impact }) => `${id} (${impact})`,
      );
    });
    report(`axe, ${name}`, violations.join(", ") || "no violation", violations.length === 0);
    if (values.screenshots !== undefined) {
      await write(page, "Question: On which continent is Cambodia?\nAnswer:");
      mkdirSync(values.screenshots, { recursive: true });
      await page.screenshot({ path: join(values.screenshots, `${name}.png`), fullPage: true });
    }
    await context.close();
  }
} finally {
  await served.close();
}
process.exit(failed ? 1 : 0);
