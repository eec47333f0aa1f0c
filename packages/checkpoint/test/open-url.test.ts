import { openUrl } from "@coppice/checkpoint";
import { isCoppiceError, Rng } from "@coppice/core";
import { expect, it } from "vitest";

const size = 21 * 1024 * 1024 + 77;
const rng = Rng.fromSeed(4);
const content = Uint8Array.from({ length: size }, (_, i) => (i % 4096 === 0 ? 256 * rng.uniform() : i));
const files = [{ name: "a b.bin", size }];

/** A server of one file that knows ranges, with the ranges it was asked for. */
function server(answer?: (from: number) => Response | undefined) {
  const asked: number[] = [];
  const fetch = async (url: string, { headers }: { headers: Readonly<Record<string, string>> }) => {
    expect(url).toBe("http://host/models/a%20b.bin");
    const [, from = "", to = ""] = /^bytes=(\d+)-(\d+)$/.exec(headers["range"] ?? "") ?? [];
    asked.push(Number(to) + 1 - Number(from));
    return (
      answer?.(Number(from)) ?? new Response(content.slice(Number(from), Number(to) + 1), { status: 206 })
    );
  };
  return { asked, fetch };
}

async function codeOf(work: () => Promise<unknown>): Promise<string> {
  const error = await work().catch((thrown: unknown) => thrown);
  return isCoppiceError(error) ? error.code : String(error);
}

it("reads any bytes in ranges of a few megabytes, each once for neighbouring reads", async () => {
  const { asked, fetch } = server();
  let loaded = 0;
  const folder = openUrl("http://host/models", files, { fetch, onProgress: (now) => (loaded = now.loaded) });
  const file = await folder.open("a b.bin");
  expect(await folder.list()).toEqual(files);
  for (const [from, length] of [
    [0, 8],
    [8, 1000],
    [4 * 1024 * 1024 - 3, 7],
    [5, 12 * 1024 * 1024],
    [size - 5, 5],
    [size, 0],
  ] as const) {
    const into = new Uint8Array(length);
    await file.read(from, into);
    expect(Buffer.compare(into, content.subarray(from, from + length))).toBe(0);
  }
  expect(asked).toEqual([4, 4, 4, 4].map((n) => n * 1024 * 1024).concat(1024 * 1024 + 77));
  expect(loaded).toBe(asked.reduce((sum, bytes) => sum + bytes));
  expect(await codeOf(() => file.read(size - 4, new Uint8Array(5)))).toBe("COPPICE_FORMAT_TRUNCATED");
  await file.close();
});

it("names what a server does wrong, and asks again", async () => {
  const answers: (Response | undefined)[] = [
    new Response("all of it", { status: 200 }),
    new Response("", { status: 503 }),
    new Response("", { status: 404 }),
    new Response("short", { status: 206 }),
    undefined,
  ];
  const { fetch } = server(() => answers.shift());
  const file = await openUrl("http://host/models/", files, { fetch }).open("a b.bin");
  const codes: string[] = [];
  while (answers.length > 1) codes.push(await codeOf(() => file.read(0, new Uint8Array(4))));
  expect(codes).toEqual([
    "COPPICE_IO_READ",
    "COPPICE_IO_READ",
    "COPPICE_FORMAT_MISSING_FILE",
    "COPPICE_FORMAT_TRUNCATED",
  ]);
  const into = new Uint8Array(4);
  await file.read(0, into);
  expect(into).toEqual(content.slice(0, 4));
});

it("knows no other files", async () => {
  const folder = openUrl("http://host/models", files, server());
  expect(await codeOf(() => folder.open("config.json"))).toBe("COPPICE_FORMAT_MISSING_FILE");
  expect(await codeOf(() => folder.open("../a b.bin"))).toBe("COPPICE_FORMAT_PATH");
});

it("says that a server cannot be reached, and ends with a signal", async () => {
  const fetch = async () => Promise.reject(new TypeError("no route"));
  const file = await openUrl("http://host/models", files, { fetch }).open("a b.bin");
  expect(await codeOf(() => file.read(0, new Uint8Array(4)))).toBe("COPPICE_IO_READ");
  const signal = AbortSignal.abort();
  expect(await codeOf(() => file.read(0, new Uint8Array(4), { signal }))).toBe("COPPICE_ABORTED");
});
