import { wordOverlap, words } from "./f1.js";

/** Least share of the keywords that an answer must hold to score at all. */
const leastRecall = 0.2;

/** Words that say nothing about an answer. Articles are gone by then. */
const commonWords = new Set(
  (
    "about and are as at be because been being but by did do does for from had has have he her his i in is it its of on or she " +
    "that their them there they this to was were what when where which who will with"
  ).split(" "),
);

/**
 * Scores an answer by its keywords, in two stages, as LV-Eval does (arXiv 2402.05136): 0 when less than a fifth of the
 * words of the keywords occur in it, else the overlap of words (F1) with the expected answer. Common words count in neither. So neither
 * an answer that repeats the question's words nor one in whole sentences is scored for its style.
 * @param keywords words that a right answer cannot do without; when there are none, the expected answer
 */
export function keywordScore(prediction: string, gold: string, keywords: readonly string[] = []): number {
  const predicted = tellingWords(prediction);
  const expected = tellingWords(gold);
  const wanted = keywords.length === 0 ? expected : tellingWords(keywords.join(" "));
  if (wanted.length > 0 && wordOverlap(predicted, wanted) / wanted.length < leastRecall) return 0;
  const same = wordOverlap(predicted, expected);
  if (same === 0) return 0;
  return (2 * same) / (predicted.length + expected.length);
}

/** Words of a text that say something; all of them where none does. */
function tellingWords(text: string): string[] {
  const all = words(text);
  const telling = all.filter((word) => !commonWords.has(word));
  return telling.length > 0 ? telling : all;
}
