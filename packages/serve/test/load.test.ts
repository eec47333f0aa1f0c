import { connect, type Socket } from "node:net";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { type RequestRecord, serveModel } from "@coppice/serve";
import { describe, expect, it } from "vitest";
import { type FakeOptions, fakeModel } from "./fake-model.js";

const text = "one two three four five six seven eight nine ten ";

async function start(options: FakeOptions = {}, slowClientSeconds = 30) {
  const model = fakeModel(options);
  const records: RequestRecord[] = [];
  const onRequest = (record: RequestRecord) => records.push(record);
  const server = await serveModel({ model, name: "fake", port: 0, queue: 64, slowClientSeconds, onRequest });
  return { model, records, server, [Symbol.asyncDispose]: () => server.close() };
}

const body = (prompt: string, more: object = {}) =>
  JSON.stringify({ model: "fake", prompt, max_tokens: 4000, stream: true, temperature: 0, ...more });

const ask = (url: string, content: string | Uint8Array<ArrayBuffer>, signal: AbortSignal | null = null) =>
  fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: content,
    signal,
  });

/** The text of a whole stream. */
async function readText(response: Response): Promise<string> {
  const events = (await response.text()).split("\n\n").filter((event) => event !== "");
  expect(events.at(-1)).toBe("data: [DONE]");
  return events
    .slice(0, -1)
    .map((event) => JSON.parse(event.slice("data: ".length)).choices[0].text)
    .join("");
}

/** A connection that sends a request by hand and reads nothing until told to. */
function rawRequest(url: string, content: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1", () => {
      socket.pause();
      socket.write(
        `POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n` +
          `Content-Length: ${Buffer.byteLength(content)}\r\nConnection: close\r\n\r\n${content}`,
      );
      resolve(socket);
    });
    socket.on("error", reject);
  });
}

const until = async (is: () => boolean) => {
  for (let i = 0; i < 4000 && !is(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(is()).toBe(true);
};

describe("under load", () => {
  it("64 streams at once each get their own text", async () => {
    await using s = await start();
    const prompts = Array.from({ length: 64 }, (_, i) => `${i} ${text.repeat(1 + (i % 3))}${i}`);
    const texts = await Promise.all(
      prompts.map(async (prompt) => readText(await ask(s.server.url, body(prompt)))),
    );
    expect(texts).toEqual(prompts);
    expect([s.server.running, s.server.waiting, s.model.open]).toEqual([0, 0, 0]);
  });

  it("clients that vanish free their places, before, while and after they get text", async () => {
    await using s = await start();
    const long = text.repeat(150);
    await Promise.all(
      Array.from({ length: 40 }, async (_, i) => {
        const leaving = new AbortController();
        const answer = ask(s.server.url, body(long), leaving.signal);
        // A third leaves at once, a third at the first text, a third in the middle.
        if (i % 3 === 0) {
          setTimeout(() => leaving.abort(), i);
          await expect(answer.then((response) => response.text())).rejects.toThrow();
          return;
        }
        const reader = (await answer).body?.getReader();
        for (let chunk = 0; chunk < (i % 3 === 1 ? 1 : 20); chunk++) await reader?.read();
        leaving.abort();
      }),
    );
    // Who left at once may never have arrived.
    await until(() => s.records.length >= 26 && s.server.running + s.server.waiting + s.model.open === 0);
    expect(new Set(s.records.map(({ status }) => status))).toEqual(new Set([499]));
    const before = s.model.tokens;
    expect(await readText(await ask(s.server.url, body(text)))).toBe(text);
    // Nothing is written any more for those who left.
    expect(s.model.tokens - before).toBe(s.model.encode(text).length + 1);
  });

  it("slow readers hold their text back, and get all of it in the end", async () => {
    await using s = await start({ context: 400_000 });
    // Some 25 MB of events, far more than sockets of both sides hold.
    const many = text.repeat(10_000);
    const content = body(many, { max_tokens: 100_000 });
    const socket = await rawRequest(s.server.url, content);
    await until(() => s.model.tokens > 0);
    let held = -1;
    await until(() => {
      const still = s.model.tokens === held;
      held = s.model.tokens;
      return still && held > 100;
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(s.model.tokens).toBe(held);
    expect(held).toBeLessThan(50_000);
    // Others are served meanwhile.
    expect(await readText(await ask(s.server.url, body(text)))).toBe(text);
    let end = "";
    socket.on("data", (data) => {
      end = (end + String(data)).slice(-200);
    });
    socket.resume();
    await until(() => socket.closed);
    expect(end).toContain("data: [DONE]");
  });

  it("clients that read nothing for too long are cut off", async () => {
    await using s = await start({ context: 400_000 }, 0.2);
    const content = body(text.repeat(10_000), { max_tokens: 100_000 });
    const sockets = await Promise.all([1, 2].map(() => rawRequest(s.server.url, content)));
    await until(() => s.records.length === 2);
    expect(s.records.map(({ status }) => status)).toEqual([499, 499]);
    expect([s.server.running, s.model.open]).toEqual([0, 0]);
    for (const socket of sockets) socket.destroy();
  });

  it("half a request, and bytes that are no text, hold nothing", async () => {
    await using s = await start();
    for (let i = 0; i < 20; i++) {
      const socket = connect(Number(new URL(s.server.url).port), "127.0.0.1");
      socket.write("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
      socket.write('Content-Length: 1000\r\n\r\n{"model":');
      setTimeout(() => socket.destroy(), 20);
    }
    const answer = await ask(s.server.url, Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d));
    expect([answer.status, (await answer.json()).error.code]).toEqual([400, "invalid_json"]);
    await until(() => s.records.length === 21);
    expect(s.server.running).toBe(0);
  });

  it("memory goes back to where it was", async () => {
    setFlagsFromString("--expose-gc");
    const collect: () => void = runInNewContext("gc");
    await using s = await start();
    const large = JSON.stringify({ model: "fake", prompt: "a".repeat(10_000_000) });
    const round = async () => {
      await Promise.all(
        Array.from({ length: 64 }, async (_, i) => {
          if (i % 32 === 0) return void (await (await ask(s.server.url, large)).text());
          if (i % 4 === 1) return void (await (await ask(s.server.url, "{")).text());
          const leaving = new AbortController();
          const answer = await ask(s.server.url, body(text.repeat(4)), leaving.signal);
          if (i % 4 === 2) return leaving.abort();
          await answer.text();
        }),
      );
      await until(() => s.server.running + s.server.waiting + s.model.open === 0);
    };
    const held = async () => {
      for (let i = 0; i < 3; i++) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        collect();
      }
      const { heapUsed, external, arrayBuffers } = process.memoryUsage();
      return heapUsed + external + arrayBuffers;
    };
    // What is loaded or compiled on first use is no leak.
    await round();
    await round();
    const before = await held();
    const rounds = 4;
    for (let i = 0; i < rounds; i++) await round();
    const more = (await held()) - before;
    // Every round sends 20 MB of bodies, and what a request allocates is some 100 kB, 256 times.
    expect(more).toBeLessThan(3_000_000);
  });
});
