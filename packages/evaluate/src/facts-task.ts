import { CoppiceError, checkWholeNumber, type Rng } from "@coppice/core";
import {
  type Asked,
  indexAt,
  type LongContextOptions,
  type LongContextTask,
  longContextTask,
  type SampleMaker,
} from "./long-context-task.js";
import {
  adjectives,
  animals,
  cities,
  firstNames,
  foods,
  jobs,
  nameParts,
  nouns,
} from "./long-context-words.js";
import type { TextTask } from "./task.js";

export interface FactsTaskOptions extends LongContextOptions {
  /** What the facts are hidden in, cut at the ends of its sentences. Default: plain sentences about things. */
  readonly texts?: TextTask;
  /** Confusing facts beside the one that is asked for. Default 8. */
  readonly confusing?: number;
}

const defaultConfusing = 8;
/** More confusing facts than any question needs. */
const mostConfusing = 1_000;

/**
 * One fact in a long text, among facts that are easily taken for it, in the manner of LV-Eval (arXiv 2402.05136): the same person in other
 * respects, and people of the same first or family name in the same respect. Names are invented, so that nothing but the prompt can
 * answer. Scored by `keyword-score`.
 * @throws COPPICE_USAGE, COPPICE_TASK_EMPTY for texts without sentences, COPPICE_TASK_TOO_LONG for lengths beyond the model's context
 */
export function factsTask(options: FactsTaskOptions): LongContextTask {
  const confusing = options.confusing ?? defaultConfusing;
  if (confusing !== 0) checkWholeNumber("confusing", confusing, mostConfusing);
  const sentences = options.texts && sentencesOf(options.texts);
  return longContextTask("facts", "keyword-score", options, (rng) => hiddenFact(rng, confusing, sentences));
}

interface Fact {
  readonly sentence: string;
  readonly question: string;
  readonly answer: string;
}

type Respect = (name: string, rng: Rng) => Fact;

const respects: readonly Respect[] = [
  (name, rng) => {
    const [job, city] = [rng.pick(jobs), rng.pick(cities)];
    const sentence = `${name} works as a ${job} in ${city}.`;
    return rng.bernoulli(0.5)
      ? { sentence, question: `What is the job of ${name}?`, answer: job }
      : { sentence, question: `Where does ${name} work?`, answer: city };
  },
  (name, rng) => {
    const year = String(1900 + rng.integer(100));
    return { sentence: `${name} was born in ${year}.`, question: `When was ${name} born?`, answer: year };
  },
  (name, rng) => {
    const food = rng.pick(foods);
    return {
      sentence: `${name} likes to eat ${food}.`,
      question: `What does ${name} like to eat?`,
      answer: food,
    };
  },
  (name, rng) => {
    const animal = rng.pick(animals);
    return {
      sentence: `${name} owns ${2 + rng.integer(97)} ${animal}.`,
      question: `Which animals does ${name} own?`,
      answer: animal,
    };
  },
];

function hiddenFact(rng: Rng, confusing: number, sentences: readonly string[] | undefined): SampleMaker {
  const family = () => (nameParts as readonly string[][]).map((parts) => rng.pick(parts)).join("");
  const [first, last] = [rng.pick(firstNames), family()];
  const name = `${first} ${last}`;
  const order = rng.shuffle([...respects.keys()]);
  const asked = (respects[order[0] as number] as Respect)(name, rng);
  const taken = new Set([name]);
  const confusers = Array.from({ length: confusing }, (_, i): string => {
    // What else is true of the person comes first, once each; all others are namesakes.
    const other = order[1 + i];
    if (i < 2 && other !== undefined) return (respects[other] as Respect)(name, rng).sentence;
    let namesake = name;
    for (let attempt = 0; taken.has(namesake); attempt++) {
      // After many namesakes, of all first names.
      const firstName = attempt > 50 ? rng.pick(firstNames) : first;
      namesake =
        i % 2 === 0
          ? `${firstName} ${family()}`
          : `${rng.pick(firstNames)} ${attempt > 50 ? family() : last}`;
    }
    taken.add(namesake);
    return (respects[order[0] as number] as Respect)(namesake, rng).sentence;
  });
  // Where the confusing facts stand, as depths, so that the same ones stay in place whatever the length.
  const spots = confusers.map(() => rng.uniform());
  const begin = sentences ? rng.integer(sentences.length) : 0;
  return {
    part: (i) => (sentences ? (sentences[(begin + i) % sentences.length] as string) : neutral(rng)),
    ask(parts, depth) {
      const places = parts.length + 1;
      const before = parts.map((part) => [part]);
      before.push([]);
      const insert = (at: number, sentence: string) => {
        before[at]?.unshift(sentence);
      };
      for (const [i, sentence] of confusers.entries()) insert(indexAt(spots[i] as number, places), sentence);
      insert(indexAt(depth, places), asked.sentence);
      return { parts: before.flat(), ...question(asked) };
    },
  };
}

function question({ question: text, answer }: Fact): Asked {
  return {
    answer: ` ${answer}`,
    keywords: [answer],
    prompt: (parts) => `Passage: ${parts.join(" ")}\nQuestion: ${text}\nAnswer:`,
  };
}

function neutral(rng: Rng): string {
  const [thing, other, third] = [rng.pick(nouns), rng.pick(nouns), rng.pick(nouns)];
  const [one, two] = [rng.pick(adjectives), rng.pick(adjectives)];
  switch (rng.integer(4)) {
    case 0:
      return `The ${one} ${thing} stands beside the ${other}.`;
    case 1:
      return `Nobody moved the ${thing} near the ${two} ${other}.`;
    case 2:
      return `Every ${third} here is ${one} and ${two}.`;
    default:
      return `There was a ${thing} behind the ${one} ${other}.`;
  }
}

/** @throws COPPICE_TASK_EMPTY */
function sentencesOf({ name, samples }: TextTask): string[] {
  const sentences = samples.flatMap(({ text }) =>
    text
      .replaceAll(/\s+/g, " ")
      .split(/(?<=[.!?。！？])\s*(?=\S)/u)
      .map((sentence) => sentence.trim())
      .filter((sentence) => sentence !== ""),
  );
  if (sentences.length > 0) return sentences;
  throw new CoppiceError("COPPICE_TASK_EMPTY", `${name} holds no sentences to hide facts in`);
}
