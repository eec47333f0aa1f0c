import { connect } from "node:net";
import { type RequestRecord, type ServeOptions, serveModel } from "@coppice/serve";
import OpenAI, {
  APIError,
  AuthenticationError,
  BadRequestError,
  NotFoundError,
  RateLimitError,
} from "openai";
import { describe, expect, it } from "vitest";
import { type FakeModel, type FakeOptions, fakeModel } from "./fake-model.js";

interface Started extends AsyncDisposable {
  readonly url: string;
  readonly model: FakeModel;
  readonly client: OpenAI;
  readonly records: RequestRecord[];
  readonly server: Awaited<ReturnType<typeof serveModel>>;
}

async function start(options: FakeOptions = {}, serve: Partial<ServeOptions> = {}): Promise<Started> {
  const model = fakeModel(options);
  const records: RequestRecord[] = [];
  const server = await serveModel({
    model,
    name: "fake",
    port: 0,
    onRequest: (record) => records.push(record),
    ...serve,
  });
  const client = new OpenAI({
    baseURL: `${server.url}/v1`,
    apiKey: serve.apiKey ?? "none",
    maxRetries: 0,
  });
  return { url: server.url, model, client, records, server, [Symbol.asyncDispose]: () => server.close() };
}

const post = (url: string, body: string, headers: Record<string, string> = {}, path = "/v1/completions") =>
  fetch(url + path, { method: "POST", body, headers: { "content-type": "application/json", ...headers } });

const until = async (is: () => boolean) => {
  for (let i = 0; i < 2000 && !is(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(is()).toBe(true);
};

const user = (content: string) => [{ role: "user" as const, content }];

describe("the official client", () => {
  it("reads chat answers", async () => {
    await using s = await start();
    const answer = await s.client.chat.completions.create({ model: "fake", messages: user("hello world") });
    expect(answer).toMatchObject({ object: "chat.completion", model: "fake" });
    expect(answer.id).toMatch(/^chatcmpl-[0-9a-f]{32}$/);
    expect(answer.choices).toEqual([
      {
        index: 0,
        message: { role: "assistant", content: "[user] hello world\n[assistant] ", refusal: null },
        logprobs: null,
        finish_reason: "stop",
      },
    ]);
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage ?? {};
    expect([completion_tokens, total_tokens]).toEqual([prompt_tokens, 2 * (prompt_tokens ?? 0)]);
  });

  it("streams chat answers, with usage", async () => {
    await using s = await start();
    const stream = await s.client.chat.completions.create({
      model: "fake",
      messages: [
        { role: "developer", content: "be brief" },
        {
          role: "user",
          content: [
            { type: "text", text: "a €🌲" },
            { type: "text", text: "!" },
          ],
        },
      ],
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    const ends: unknown[] = [];
    const roles: unknown[] = [];
    for await (const chunk of stream) {
      expect(chunk.object).toBe("chat.completion.chunk");
      const [choice] = chunk.choices;
      if (choice?.delta.role) roles.push(choice.delta.role);
      text += choice?.delta.content ?? "";
      if (choice?.finish_reason) ends.push(choice.finish_reason);
      usage = chunk.usage;
    }
    expect(text).toBe("[system] be brief\n[user] a €🌲!\n[assistant] ");
    expect([roles, ends]).toEqual([["assistant"], ["stop"]]);
    expect(usage?.completion_tokens).toBe(usage?.prompt_tokens);
  });

  it("reads completions, of several prompts, of token ids, and cut at limits", async () => {
    await using s = await start();
    const { choices } = await s.client.completions.create({
      model: "fake",
      prompt: ["one two three", "four"],
      max_tokens: 100,
    });
    expect(choices.map(({ text, index, finish_reason }) => [text, index, finish_reason])).toEqual([
      ["one two three", 0, "stop"],
      ["four", 1, "stop"],
    ]);
    const ids = [...s.model.encode("one two three")];
    const cut = await s.client.completions.create({ model: "fake", prompt: ids, max_tokens: 1 });
    expect(cut.choices[0]?.finish_reason).toBe("length");
    expect(cut.usage).toMatchObject({ prompt_tokens: ids.length, completion_tokens: 1 });
    const stopped = await s.client.completions.create({
      model: "fake",
      prompt: "one two three",
      stop: "o t",
    });
    expect(stopped.choices[0]).toMatchObject({ text: "one tw".slice(0, 6), finish_reason: "stop" });
    const long = "word ".repeat(40);
    const sixteen = await s.client.completions.create({ model: "fake", prompt: long });
    expect(sixteen.usage?.completion_tokens).toBe(16);
  });

  it("streams completions of several prompts", async () => {
    await using s = await start();
    const texts = ["", ""];
    const prompt = ["one two", "three"];
    for await (const { choices } of await s.client.completions.create({
      model: "fake",
      prompt,
      stream: true,
    })) {
      for (const { index, text } of choices) texts[index] += text;
    }
    expect(texts).toEqual(prompt);
  });

  it("lists models", async () => {
    await using s = await start();
    expect((await s.client.models.list()).data.map(({ id }) => id)).toEqual(["fake"]);
    expect((await s.client.models.retrieve("fake")).id).toBe("fake");
    await expect(s.client.models.retrieve("other")).rejects.toThrow(NotFoundError);
  });

  it("sees errors as its own", async () => {
    await using s = await start({ context: 64, chatTemplate: "{{ raise_exception('no such role') }}" });
    const complete = (body: object) =>
      s.client.completions.create({ model: "fake", prompt: "a", ...body } as never) as Promise<unknown>;
    await expect(complete({ model: "gpt" })).rejects.toMatchObject({
      status: 404,
      code: "model_not_found",
      param: "model",
      type: "invalid_request_error",
    });
    await expect(complete({ temperature: 3 })).rejects.toMatchObject({ status: 400, param: "temperature" });
    await expect(complete({ prompt: "word ".repeat(200) })).rejects.toMatchObject({
      status: 400,
      code: "context_length_exceeded",
      param: "prompt",
    });
    await expect(complete({ prompt: "x".repeat(5000) })).rejects.toMatchObject({
      code: "context_length_exceeded",
    });
    await expect(complete({ prompt: [99_999] })).rejects.toThrow(BadRequestError);
    await expect(complete({ n: 2 })).rejects.toMatchObject({ code: "unsupported_value", param: "n" });
    await expect(
      s.client.chat.completions.create({ model: "fake", messages: user("a") }),
    ).rejects.toMatchObject({
      status: 400,
      param: "messages",
      message: expect.stringContaining("no such role"),
    });
    // An error of the first token of a stream still comes as a status.
    await expect(complete({ prompt: [99_999], stream: true })).rejects.toMatchObject({ status: 400 });
  });

  it("gets errors of the middle of a stream, and of the model", async () => {
    const onToken = (written: number) => {
      if (written === 2) throw new Error("out of memory");
    };
    await using s = await start({ onToken });
    const prompt = "one two three four";
    const stream = await s.client.completions.create({ model: "fake", prompt, stream: true });
    await expect(
      (async () => {
        for await (const chunk of stream) expect(chunk.choices).toHaveLength(1);
      })(),
    ).rejects.toThrow(APIError);
    await expect(s.client.completions.create({ model: "fake", prompt })).rejects.toMatchObject({
      status: 500,
      type: "server_error",
    });
    await until(() => s.records.length === 2);
    expect(s.records[1]?.error).toMatchObject({ message: "out of memory" });
    expect(s.model.open).toBe(0);
  });

  it("needs the key where there is one", async () => {
    await using s = await start({}, { apiKey: "secret" });
    expect((await s.client.models.list()).data).toHaveLength(1);
    const other = new OpenAI({ baseURL: `${s.url}/v1`, apiKey: "secrets", maxRetries: 0 });
    await expect(other.models.list()).rejects.toThrow(AuthenticationError);
    expect((await fetch(`${s.url}/v1/models`)).status).toBe(401);
    expect((await fetch(`${s.url}/health`)).status).toBe(200);
  });
});

describe("what is random", () => {
  it("comes from the request, then from the model, then from the API's defaults", async () => {
    const seen: object[] = [];
    const model = fakeModel({ sampling: { temperature: 0.5, topK: 9 } });
    const generate = model.generate.bind(model);
    const listening = Object.assign(Object.create(model) as FakeModel, {
      generate: (...[prompt, options]: Parameters<typeof generate>) => {
        const { signal: _, onPiece: __, ...plain } = options ?? {};
        seen.push(plain);
        return generate(prompt, options);
      },
    });
    await using s = await start({}, { model: listening });
    await s.client.completions.create({ model: "fake", prompt: "a" });
    const extras = { top_p: 0, top_k: -1, min_p: 0.1, repetition_penalty: 1.1, seed: 4, stop: ["x"] };
    await s.client.completions.create({ model: "fake", prompt: "a", ...extras } as never);
    expect(seen).toEqual([
      { temperature: 0.5, topK: 9, seed: expect.any(Number), maxTokens: 16 },
      {
        temperature: 0.5,
        topK: 9,
        topP: Number.MIN_VALUE,
        minP: 0.1,
        repetitionPenalty: 1.1,
        seed: 4,
        stop: ["x"],
        maxTokens: 16,
      },
    ]);
  });
});

describe("bad requests", () => {
  it.each<[string, string, number, string]>([
    ["no JSON", "{", 400, "invalid_json"],
    ["a list", "[]", 400, "invalid_json"],
    ["nothing", "", 400, "invalid_json"],
    ["deep nesting", "[".repeat(100_000), 400, "invalid_json"],
    ["no prompt", '{"model":"fake"}', 400, "invalid_value"],
    ["an empty prompt", '{"model":"fake","prompt":""}', 400, "invalid_value"],
    ["an empty list", '{"model":"fake","prompt":[]}', 400, "invalid_value"],
    ["text for a number", '{"model":"fake","prompt":"a","max_tokens":"5"}', 400, "invalid_value"],
    [
      "too many stop strings",
      `{"model":"fake","prompt":"a","stop":${JSON.stringify(Array(17).fill("a"))}}`,
      400,
      "invalid_value",
    ],
    ["an empty stop string", '{"model":"fake","prompt":"a","stop":""}', 400, "invalid_value"],
    ["tools", '{"model":"fake","prompt":"a","tools":[{}]}', 400, "unsupported_value"],
    ["a key called __proto__", '{"model":"fake","prompt":"a","__proto__":{"stream":1}}', 200, ""],
    [
      "fields that ask for nothing",
      '{"model":"fake","prompt":"a","n":1,"tools":[],"user":"me","stop":null}',
      200,
      "",
    ],
  ])("%s", async (_, body, status, code) => {
    await using s = await start();
    const response = await post(s.url, body);
    const answer = await response.json();
    expect([response.status, answer.error?.code ?? ""]).toEqual([status, code]);
    if (status === 400) expect(answer.error.message).toBeTypeOf("string");
  });

  it("a request that names no model, in words", async () => {
    await using s = await start();
    const answer = await (await post(s.url, '{"prompt":"a"}')).json();
    expect(answer.error).toMatchObject({ message: "model is missing", param: "model" });
  });

  it.each<[string, string, RequestInit, number]>([
    ["an unknown path", "/v1/embeddings", { method: "POST" }, 404],
    ["another method", "/v1/completions", {}, 405],
    ["another type of body", "/v1/completions", { method: "POST", body: "{}" }, 415],
    ["a strange model name", "/v1/models/%zz", {}, 404],
  ])("%s", async (_, path, init, status) => {
    await using s = await start();
    const response = await fetch(s.url + path, init);
    expect(response.status).toBe(status);
    expect((await response.json()).error.message).toBeTypeOf("string");
  });

  it("have no name of another host, and are HTTP", async () => {
    await using s = await start();
    const raw = (text: string) =>
      new Promise<string>((resolve, reject) => {
        const socket = connect(Number(new URL(s.url).port), "127.0.0.1", () => socket.end(text));
        let answer = "";
        socket.on("data", (data) => {
          answer += String(data);
        });
        socket.on("close", () => resolve(answer)).on("error", reject);
      });
    const get = (host: string) => raw(`GET /health HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`);
    expect(await get("evil.example:80")).toMatch(/^HTTP\/1.1 403 .*host_not_allowed/s);
    expect(await get("localhost:1")).toMatch(/^HTTP\/1.1 200/);
    expect(await get("[::1]:1")).toMatch(/^HTTP\/1.1 200/);
    expect(await raw("\x16\x03\x01 hello\r\n\r\n")).toMatch(/^HTTP\/1.1 400 .*"invalid_request_error"/s);
    expect(await raw(`GET /health HTTP/1.1\r\nX: ${"a".repeat(50_000)}\r\n\r\n`)).toMatch(/^HTTP\/1.1 431/);
  });

  it("that are too large are answered, and the server goes on", async () => {
    await using s = await start();
    const body = JSON.stringify({ model: "fake", prompt: "a".repeat(10_000_000) });
    const answers = await Promise.all(Array.from({ length: 6 }, () => post(s.url, body)));
    for (const answer of answers) {
      expect(answer.status).toBe(413);
      expect((await answer.json()).error.code).toBe("request_too_large");
    }
    expect((await post(s.url, '{"model":"fake","prompt":"a"}')).status).toBe(200);
  });
});

describe("numbers out of range", () => {
  it.each([
    { parallel: 0 },
    { queue: -1 },
    { maxBodyBytes: 0 },
    { slowClientSeconds: 0 },
    { apiKey: "" },
    { port: 70_000 },
  ])("%j", async (options) => {
    await expect(start({}, options)).rejects.toMatchObject({ code: "COPPICE_USAGE" });
  });

  it("and taken ports are refused", async () => {
    await using s = await start();
    await expect(start({}, { port: Number(new URL(s.url).port) })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
      message: expect.stringContaining("EADDRINUSE"),
    });
  });
});

describe("the queue", () => {
  it("is bounded, says when to come back, and lets everybody in it through in order", async () => {
    let open = () => {};
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    await using s = await start({ onToken: () => gate }, { parallel: 2, queue: 3 });
    const finished: number[] = [];
    const ask = (n: number) =>
      s.client.completions.create({ model: "fake", prompt: `text ${n}` }).then(({ choices }) => {
        finished.push(n);
        return choices[0]?.text;
      });
    const asked: Promise<string | undefined>[] = [];
    for (let n = 0; n < 5; n++) {
      asked.push(ask(n));
      await until(() => s.server.running + s.server.waiting === n + 1);
    }
    expect([s.server.running, s.server.waiting]).toEqual([2, 3]);
    const refused = await ask(5).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(RateLimitError);
    expect(refused).toMatchObject({ code: "queue_full", type: "rate_limit_error" });
    expect(Number((refused as RateLimitError).headers.get("retry-after"))).toBeGreaterThan(0);
    open();
    expect(await Promise.all(asked)).toEqual([0, 1, 2, 3, 4].map((n) => `text ${n}`));
    expect(finished.slice(2).sort()).toEqual([2, 3, 4]);
    expect([s.server.running, s.server.waiting]).toEqual([0, 0]);
  });

  it("loses who leaves", async () => {
    let open = () => {};
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    await using s = await start({ onToken: () => gate }, { parallel: 1, queue: 2 });
    const prompt = "one two";
    const first = s.client.completions.create({ model: "fake", prompt });
    await until(() => s.server.running === 1);
    const leaving = new AbortController();
    const second = s.client.completions.create({ model: "fake", prompt }, { signal: leaving.signal });
    await until(() => s.server.waiting === 1);
    const third = s.client.completions.create({ model: "fake", prompt });
    await until(() => s.server.waiting === 2);
    leaving.abort();
    await expect(second).rejects.toThrow("aborted");
    await until(() => s.server.waiting === 1);
    open();
    expect((await first).choices[0]?.text).toBe(prompt);
    expect((await third).choices[0]?.text).toBe(prompt);
    expect(s.records.map(({ status }) => status).sort()).toEqual([200, 200, 499]);
  });
});

describe("closing", () => {
  it("ends streams and what waits, and frees the port", async () => {
    const s = await start(
      { onToken: () => new Promise((resolve) => setTimeout(resolve, 5)) },
      { parallel: 1 },
    );
    const prompt = "word ".repeat(300);
    const stream = await s.client.completions.create({
      model: "fake",
      prompt,
      max_tokens: 1000,
      stream: true,
    });
    const reading = (async () => {
      for await (const chunk of stream) expect(chunk.choices).toHaveLength(1);
    })();
    const waiting = s.client.completions.create({ model: "fake", prompt });
    await until(() => s.server.waiting === 1);
    const both = Promise.allSettled([reading, waiting]);
    await Promise.all([s.server.close(), s.server.close()]);
    expect((await both).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(s.model.open).toBe(0);
    await using again = await start({}, { port: Number(new URL(s.url).port) });
    expect((await fetch(`${again.url}/health`)).status).toBe(200);
  });
});
