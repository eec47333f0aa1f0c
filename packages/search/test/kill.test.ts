import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Rng } from "@coppice/core";
import { expect, test } from "vitest";

const script = fileURLToPath(new URL("./kill-child.mjs", import.meta.url));

/** Runs the search of kill-child.mjs in `folder`; kills it after `lines` evaluations when given. */
async function runChild(
  folder: string,
  killAfter?: number,
): Promise<{ keys: string[]; code: number | null }> {
  const child = spawn(process.execPath, [script, folder], { stdio: ["ignore", "pipe", "inherit"] });
  const keys: string[] = [];
  let rest = "";
  child.stdout.setEncoding("utf8");
  child.stdout.on("data", (text: string) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() as string;
    keys.push(...lines);
    if (killAfter !== undefined && keys.length >= killAfter) child.kill("SIGKILL");
  });
  const [code] = (await once(child, "close")) as [number | null];
  return { keys, code };
}

test("killed with SIGKILL again and again, a run ends with the result of one that was not", async () => {
  const parent = await mkdtemp(join(tmpdir(), "coppice-kill-"));
  try {
    const whole = join(parent, "whole");
    expect(await runChild(whole)).toMatchObject({ code: 0 });
    const folder = join(parent, "killed");
    const rng = Rng.fromSeed(1);
    const keys: string[] = [];
    let kills = 0;
    for (let code: number | null = null; code !== 0; kills++) {
      const part = await runChild(folder, kills < 6 ? 1 + rng.integer(9) : undefined);
      keys.push(...part.keys);
      code = part.code;
    }
    expect(kills).toBeGreaterThan(3);
    for (const name of ["result.json", "plan.json"]) {
      expect(await readFile(join(folder, name), "utf8")).toBe(await readFile(join(whole, name), "utf8"));
    }
    // At most the batch of two that was under way when a process died is evaluated again.
    expect(keys.length - new Set(keys).size).toBeLessThanOrEqual(2 * (kills - 1));
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
});
