import { randomInt } from "node:crypto";
import type { ServerResponse } from "node:http";
import type { ModelPiece, ModelText, ModelTextOptions, Prompt, TextModel } from "@coppice/runtime";
import { Answers } from "./answers.js";
import { ApiError, toApiError } from "./api-error.js";
import { EventStream } from "./event-stream.js";
import type { TextRequest } from "./text-request.js";

/** Text with more characters per token of context than this cannot fit, and is refused before it is tokenized. */
const charsPerToken = 32;

/**
 * Prompts as token ids.
 * @throws ApiError 400 when a prompt leaves no room for an answer, or is not for this model
 */
export function encodePrompts(model: TextModel, { kind, prompts }: TextRequest): Int32Array[] {
  const param = kind === "chat" ? "messages" : "prompt";
  const tooLong = (what: string) =>
    new ApiError(400, `the prompt has ${what}; the model's context is ${model.contextLength} tokens`, {
      param,
      code: "context_length_exceeded",
    });
  return prompts.map((prompt) => {
    const chars = charsOf(prompt);
    if (chars > charsPerToken * model.contextLength) throw tooLong(`${chars} characters`);
    let ids: Int32Array;
    try {
      ids = model.encode(prompt);
    } catch (error) {
      throw toApiError(error, param);
    }
    if (ids.length > model.contextLength) throw tooLong(`${ids.length} tokens`);
    return ids;
  });
}

function charsOf(prompt: Prompt): number {
  if (typeof prompt === "string") return prompt.length;
  if (prompt instanceof Int32Array) return 0;
  return prompt.reduce((sum, { content }) => sum + content.length, 0);
}

/** Writes the answers of a request, all at once or as they come. */
export async function answerText(
  model: TextModel,
  request: TextRequest,
  prompts: readonly Int32Array[],
  response: ServerResponse,
  options: { readonly signal: AbortSignal; readonly slowMs: number },
): Promise<ModelText[]> {
  const answers = new Answers(request);
  const textOptions = { ...samplingOf(model, request), signal: options.signal };
  if (!request.stream) {
    const texts: ModelText[] = [];
    for (const prompt of prompts) texts.push(await model.generate(prompt, textOptions));
    sendJson(response, 200, answers.whole(texts));
    return texts;
  }
  const texts: ModelText[] = [];
  let events: EventStream | undefined;
  try {
    for (const [index, prompt] of prompts.entries()) {
      let begun = false;
      // What is wrong with a request shows by the first token: until then the answer can be an error.
      const begin = async (): Promise<EventStream> => {
        events ??= new EventStream(response, options.slowMs);
        if (!begun && request.kind === "chat") await events.send(answers.begin(index));
        begun = true;
        return events;
      };
      const onPiece = async ({ text }: ModelPiece): Promise<void> => {
        const open = await begin();
        if (text !== "") await open.send(answers.piece(index, text));
      };
      const text = await model.generate(prompt, { ...textOptions, onPiece });
      texts.push(text);
      await (await begin()).send(answers.end(index, text));
    }
    if (request.streamUsage) await events?.send(answers.usage(texts));
    await events?.send("[DONE]");
  } catch (error) {
    if (!events || options.signal.aborted) throw error;
    // The status is sent already; clients read an error from the stream.
    await events.send(toApiError(error, "prompt").body);
  }
  events?.end();
  return texts;
}

/** What the request leaves open is as the model's makers ask; where they do not, as in the API. */
function samplingOf(model: TextModel, { options }: TextRequest): ModelTextOptions {
  return { temperature: 1, seed: randomInt(2 ** 47), ...model.sampling, ...options };
}

export function sendJson(
  response: ServerResponse,
  status: number,
  body: object,
  headers: Readonly<Record<string, string>> = {},
): void {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json; charset=utf-8",
    "content-length": Buffer.byteLength(text),
    ...headers,
  });
  response.end(text);
}
