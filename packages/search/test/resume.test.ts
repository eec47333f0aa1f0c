import { appendFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isCoppiceError, type Plan, planKey } from "@coppice/core";
import { separableLandscape, type ToyExecutorOptions, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { memoryJournal, type RunJournal, runSearch } from "@coppice/search";
import { openJournalFile, openRunFolder } from "@coppice/search/node";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Climber, comparable } from "./strategies.js";

/** One small layer: the journal's records are short, so that cutting at every byte stays fast. */
const model = toyModel({ layers: 1, experts: 8 });
const landscape = separableLandscape(model).fitness;
/** Thirds are no short decimals, so the journal must keep every bit. */
const fitness = (plan: Plan) => landscape(plan) / 3;
const evaluations = 20;
const identity = { seed: 7, options: { keep: 3 } };

async function search(journal: RunJournal, options: ToyExecutorOptions = {}) {
  const executor = toyExecutor(fitness, { samples: 2, ...options });
  const strategy = new Climber(model, 7);
  const result = await runSearch({ strategy, model, executor, evaluations, batch: 3, journal });
  return { result, evaluated: executor.evaluated.map((plan) => planKey(plan, model)) };
}

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "coppice-search-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test("killed at any evaluation, a run ends with the result of one that was not, evaluating nothing twice", async () => {
  const whole = await search(memoryJournal());
  for (let k = 0; k < evaluations; k++) {
    const journal = memoryJournal();
    await expect(search(journal, { fails: (_, done) => done === k })).rejects.toThrow("was stopped");
    const kept = journal.records.length;
    // Only the batch that was being evaluated is lost.
    expect(k - kept).toBeLessThan(3);
    const resumed = await search(journal);
    expect(comparable(resumed.result)).toEqual(comparable(whole.result));
    expect(resumed.result.replayed).toBe(kept);
    expect(resumed.evaluated).toEqual(whole.evaluated.slice(kept));
  }
});

test("a finished run is replayed without evaluating anything", async () => {
  const journal = memoryJournal();
  const whole = await search(journal);
  const again = await search(journal);
  expect(again.evaluated).toEqual([]);
  expect(comparable(again.result)).toEqual(comparable(whole.result));
});

test("the journal cut at every byte of its last three records resumes to the same result", async () => {
  const path = join(folder, "journal.jsonl");
  let file = await openJournalFile(path, identity);
  const whole = await search(file);
  await file.dispose();
  const bytes = await readFile(path);
  const lines = bytes.toString().trimEnd().split("\n");
  expect(lines).toHaveLength(evaluations + 1);
  const lastThree = lines.slice(-3).reduce((sum, line) => sum + line.length + 1, 0);
  for (let size = bytes.length - lastThree; size <= bytes.length; size++) {
    await writeFile(path, bytes.subarray(0, size));
    file = await openJournalFile(path, identity);
    const resumed = await search(file);
    await file.dispose();
    expect(comparable(resumed.result)).toEqual(comparable(whole.result));
    const complete = bytes.subarray(0, size).toString().split("\n").length - 2;
    expect(resumed.evaluated).toEqual(whole.evaluated.slice(complete));
    expect((await readFile(path)).equals(bytes)).toBe(true);
  }
});

describe("journal file", () => {
  const path = () => join(folder, "journal.jsonl");
  const records = [1, 2, 3].map((n) => ({ type: "note", text: `größer \u2028 ${n}`, n: n / 3 }));

  async function write(): Promise<Buffer> {
    const file = await openJournalFile(path(), identity);
    await Promise.all(records.map((record) => file.append([record])));
    await file.dispose();
    return readFile(path());
  }

  async function codeOf(promise: Promise<unknown>): Promise<string> {
    const error = await promise.then(
      () => undefined,
      (reason: unknown) => reason,
    );
    return isCoppiceError(error) ? error.code : String(error);
  }

  test("gives back what was appended", async () => {
    await write();
    const file = await openJournalFile(path(), identity);
    expect(file.resumed).toBe(true);
    expect(file.records).toEqual(records);
    await file.dispose();
    expect(await codeOf(file.append(records))).toBe("COPPICE_IO_WRITE");
  });

  test("a header that was cut is a run that never began", async () => {
    const bytes = await write();
    const header = bytes.indexOf(10);
    for (let size = 0; size <= header; size++) {
      await writeFile(path(), bytes.subarray(0, size));
      const file = await openJournalFile(path(), { other: "identity" });
      expect([file.resumed, file.records]).toEqual([false, []]);
      await file.dispose();
    }
  });

  test("any flipped byte before the last line is refused, in the last line it drops the line", async () => {
    const bytes = await write();
    const lastLine = bytes.lastIndexOf(10, bytes.length - 2) + 1;
    const rejected = new Set<string>();
    for (let at = 0; at < bytes.length; at++) {
      // Without the newline before it, the last line is only longer: still one line that is lost.
      if (at === lastLine - 1) continue;
      const damaged = Buffer.from(bytes);
      damaged[at] = (damaged[at] as number) ^ 0x11;
      await writeFile(path(), damaged);
      if (at < lastLine) {
        rejected.add(await codeOf(openJournalFile(path(), identity)));
        expect((await readFile(path())).equals(damaged)).toBe(true);
      } else {
        const file = await openJournalFile(path(), identity);
        expect(file.records).toEqual(records.slice(0, -1));
        await file.dispose();
      }
    }
    expect([...rejected]).toEqual(["COPPICE_RUN_JOURNAL"]);
  });

  test("says which line is damaged", async () => {
    const lines = (await write()).toString().split("\n");
    lines[2] = (lines[2] as string).replace("2", "5");
    await writeFile(path(), lines.join("\n"));
    await expect(openJournalFile(path(), identity)).rejects.toMatchObject({
      code: "COPPICE_RUN_JOURNAL",
      details: { line: 3 },
    });
  });

  test("two torn lines are not one", async () => {
    await write();
    await appendFile(path(), 'half of a line\n{"crc32":"00');
    expect(await codeOf(openJournalFile(path(), identity))).toBe("COPPICE_RUN_JOURNAL");
  });

  test("a file that is no journal is refused and left alone", async () => {
    await writeFile(path(), "name,score\na,1\nb,2\n");
    expect(await codeOf(openJournalFile(path(), identity))).toBe("COPPICE_RUN_JOURNAL");
    expect(await readFile(path(), "utf8")).toBe("name,score\na,1\nb,2\n");
  });

  test("a record with a valid checksum but impossible content is refused", async () => {
    const file = await openJournalFile(path(), identity);
    await file.append([{ type: "evaluated", scope: "search", key: "k", plan: {}, scores: [null] }]);
    expect(await codeOf(search(file))).toBe("COPPICE_RUN_JOURNAL");
    await file.dispose();
  });
});

describe("identity", () => {
  const now = { seed: 8, options: { keep: 3, topK: 1 }, __proto__x: 1 };

  test("of another run is refused with every differing field", async () => {
    await (await openRunFolder(join(folder, "run"), identity)).dispose();
    await expect(openRunFolder(join(folder, "run"), now)).rejects.toMatchObject({
      code: "COPPICE_RUN_IDENTITY",
      message: expect.stringContaining("seed was 7, is now 8"),
      details: {
        differences: [
          { field: "__proto__x", run: undefined, now: 1 },
          { field: "options.topK", run: undefined, now: 1 },
          { field: "seed", run: 7, now: 8 },
        ],
      },
    });
  });

  test("may list its fields in another order, and undefined ones are absent", async () => {
    await (await openRunFolder(join(folder, "run"), identity)).dispose();
    const same = { options: { topK: undefined, keep: 3 }, seed: 7 };
    const run = await openRunFolder(join(folder, "run"), same);
    expect(run.resumed).toBe(true);
    await run.dispose();
  });
});
