import {
  type AttentionPlan,
  type AttentionSample,
  CoppiceError,
  type Runner,
  throwIfAborted,
} from "@coppice/core";

export interface TextLikelihood {
  /** Mean negative log likelihood of response tokens, in nats; every text counts the same. */
  readonly loss: number;
  /** The same by place of the token in its text, in equal parts of the longest text; null where no token was. */
  readonly byPosition: readonly (number | null)[];
}

/** Parts of a text that are told apart. */
const parts = 8;

/** How likely a model finds the responses of texts, as it is or with limited attention. */
export async function textLikelihood(
  runner: Runner,
  samples: readonly AttentionSample[],
  { plan, signal }: { readonly plan?: AttentionPlan; readonly signal?: AbortSignal | undefined } = {},
): Promise<TextLikelihood> {
  const longest = Math.max(...samples.map(({ tokens }) => tokens.length));
  const sums = new Float64Array(parts);
  const counts = new Float64Array(parts);
  let loss = 0;
  for (const { tokens, responseFrom } of samples) {
    throwIfAborted(signal, "comparing plans by the likelihood of responses");
    const first = Math.max(1, responseFrom);
    const { targetLogProbs } = await runner.run({
      sequences: [tokens],
      positions: [Int32Array.from({ length: tokens.length - first }, (_, i) => first + i - 1)],
      targets: [tokens.slice(first)],
      ...(plan && { attention: { plan } }),
      ...(signal && { signal }),
    });
    if (!targetLogProbs)
      throw new CoppiceError("COPPICE_BACKEND_FAILED", "the backend returned no likelihoods");
    let sum = 0;
    targetLogProbs.forEach((value, i) => {
      const part = Math.floor(((first + i) * parts) / longest);
      sums[part] = (sums[part] as number) - value;
      counts[part] = (counts[part] as number) + 1;
      sum -= value;
    });
    loss += sum / targetLogProbs.length / samples.length;
  }
  const byPosition = Array.from(sums, (sum, part) =>
    counts[part] === 0 ? null : sum / (counts[part] as number),
  );
  return { loss, byPosition };
}
