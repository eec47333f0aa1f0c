import { readFileSync } from "node:fs";
import { join } from "node:path";
import { throwIfAborted } from "@coppice/core";
import { modelPath } from "@coppice/demo-model";
import { createTokenizer, type Decoder, generateText } from "@coppice/evaluate";
import type { ModelText, Prompt, TextModel } from "@coppice/runtime";

export interface FakeOptions {
  readonly context?: number;
  readonly chatTemplate?: string;
  /** Runs before every token. */
  readonly onToken?: (written: number) => void | Promise<void>;
  readonly sampling?: TextModel["sampling"];
}

export interface FakeModel extends TextModel {
  /** Texts that are being written now. */
  readonly open: number;
  /** Tokens of all texts so far. */
  readonly tokens: number;
}

const read = (name: string) => readFileSync(join(modelPath, name), "utf8");
const chatTemplate =
  "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

/**
 * A model without weights: it repeats its prompt, then ends the text. With a temperature it is as sure of it as before,
 * so that answers are known.
 */
export function fakeModel(options: FakeOptions = {}): FakeModel {
  const tokenizer = createTokenizer({
    tokenizer: read("tokenizer.json"),
    config: read("tokenizer_config.json"),
    chatTemplate: options.chatTemplate ?? chatTemplate,
  });
  const contextLength = options.context ?? 4096;
  const vocabSize = 4096;
  let open = 0;
  let tokens = 0;
  const encode = (prompt: Prompt): Int32Array => {
    if (prompt instanceof Int32Array) return prompt;
    if (typeof prompt === "string") return tokenizer.encode(prompt);
    return tokenizer.encode(tokenizer.renderChat(prompt), { special: false });
  };
  async function* stream(...[given, text = {}]: Parameters<TextModel["stream"]>) {
    const prompt = encode(given);
    let written = 0;
    const next = async (signal: AbortSignal | undefined): Promise<number> => {
      // As a session does: what waits for the network gets its turn.
      await new Promise((resolve) => setImmediate(resolve));
      await options.onToken?.(written);
      throwIfAborted(signal, "generating");
      tokens++;
      return prompt[written++] ?? 0;
    };
    const decoder: Decoder = {
      async logits(_, signal) {
        const logits = new Float32Array(vocabSize).fill(-100);
        logits[await next(signal)] = 100;
        return logits;
      },
      mostLikely: (_, signal) => next(signal),
    };
    open++;
    try {
      const request = { tokenizer, prompt, contextLength, vocabSize, endTokens: new Set([0]) };
      return { ...(yield* generateText(decoder, request, text)), cachedTokens: 0 };
    } finally {
      open--;
    }
  }
  const dispose = async () => {};
  return {
    contextLength,
    vocabSize,
    sampling: options.sampling ?? {},
    hasChatTemplate: true,
    encode,
    decode: (tokens) => tokenizer.decode(tokens),
    stream,
    async generate(prompt, { onPiece, ...rest } = {}) {
      let text: ModelText | undefined;
      async function* whole() {
        text = yield* stream(prompt, rest);
      }
      for await (const piece of whole()) await onPiece?.(piece);
      return text as ModelText;
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
    get open() {
      return open;
    },
    get tokens() {
      return tokens;
    },
  };
}
