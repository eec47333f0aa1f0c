import { ExpertLog } from "./expert-log.js";
import type { ModelEntry } from "./manifest.js";
import type { Finish, Piece, TokenText } from "./messages.js";
import { ShareTable } from "./share-table.js";
import { TokenChart } from "./token-chart.js";

const endings: Readonly<Record<Finish, string>> = {
  end: "the model ended it",
  stop: "ended",
  length: "most tokens reached",
  stopped: "stopped",
};

/** One model: what it writes, how fast, and which experts it uses. */
export class Panel {
  readonly root: HTMLElement;
  readonly #text: HTMLElement;
  readonly #speed: HTMLElement;
  readonly #first: HTMLElement;
  readonly #count: HTMLElement;
  readonly #slider: HTMLInputElement;
  readonly #picked: HTMLElement;
  readonly #chart: TokenChart;
  readonly #shares: ShareTable;
  #log: ExpertLog;
  /** The tokens of prompt and text; experts ran for all but the last one that was written. */
  #tokens: HTMLElement[] = [];
  #promptTokens = 0;
  /** What the model wrote after the prompt. */
  #written = "";
  /** Milliseconds of all tokens after the first. */
  #later = 0;
  /** The token that the user picked; undefined: the newest. */
  #pick: number | undefined;
  #drawing = false;

  /** @param weights what it loads, in words */
  constructor(
    readonly entry: ModelEntry,
    weights: string,
  ) {
    const template = document.getElementById("panel") as HTMLTemplateElement;
    this.root = (template.content.cloneNode(true) as DocumentFragment).firstElementChild as HTMLElement;
    const part = (name: string) => this.root.querySelector(name) as HTMLElement;
    const [label, size] = [part(".label"), part(".size")];
    const left = entry.kept[0]?.length ?? 0;
    label.textContent = entry.label;
    this.root.setAttribute("aria-label", entry.label);
    size.textContent = `${weights}, ${left === entry.experts ? left : `${left} of ${entry.experts}`} experts in each of ${entry.kept.length} layers`;
    this.#text = part(".text");
    this.#text.setAttribute("aria-label", `Text of ${entry.label}`);
    // It scrolls, also by keys.
    this.#text.tabIndex = 0;
    this.#speed = part(".speed");
    this.#first = part(".first");
    this.#count = part(".count");
    this.#slider = part(".pick input") as HTMLInputElement;
    this.#picked = part(".picked");
    this.#log = new ExpertLog(entry.experts, entry.kept);
    this.#chart = new TokenChart(part(".tokens") as HTMLCanvasElement, (token) => this.#choose(token));
    this.#shares = new ShareTable(part(".shares"), entry);
    this.#slider.addEventListener("input", () => this.#choose(this.#slider.valueAsNumber));
    this.#text.addEventListener("click", ({ target }) => {
      const token = this.#tokens.indexOf(target as HTMLElement);
      if (token >= 0) this.#choose(Math.min(token, this.#log.tokens - 1));
    });
    this.#chart.onResize(() => this.#draw());
    this.clear();
  }

  /** Back to an empty page. */
  clear(): void {
    this.begin([]);
  }

  begin(prompt: readonly TokenText[]): void {
    this.#log = new ExpertLog(this.entry.experts, this.entry.kept);
    this.#tokens = [];
    this.#promptTokens = prompt.length;
    this.#later = 0;
    this.#pick = undefined;
    this.#written = "";
    this.#text.replaceChildren();
    this.#text.removeAttribute("data-finish");
    for (const figure of [this.#speed, this.#first, this.#count]) figure.textContent = "–";
    for (const { token, text } of prompt) this.#append("given", token, text);
    this.#draw();
  }

  add({ token, text, milliseconds, choices }: Piece): void {
    this.#written += text;
    const before = this.#tokens.at(-1);
    if (token === undefined) {
      if (before) before.textContent += text;
      return;
    }
    const isFirst = this.#tokens.length === this.#promptTokens;
    this.#log.add(isFirst ? this.#promptTokens : 1, choices);
    this.#append("written", token, text);
    const written = this.#tokens.length - this.#promptTokens;
    if (isFirst) {
      this.#first.textContent = `${Math.round(milliseconds)} ms`;
      performance.mark("first-token", { detail: this.entry.label });
    } else {
      this.#later += milliseconds;
      this.#speed.textContent = ((1000 * (written - 1)) / this.#later).toFixed(1);
    }
    this.#count.textContent = `${this.#promptTokens} + ${written}`;
    this.#draw();
  }

  /** What the model wrote, for those who hear the page. */
  get said(): string {
    return `${this.entry.label}: ${this.#written.trim() || "nothing"}.`;
  }

  end(finish: Finish): void {
    this.#text.dataset["finish"] = endings[finish];
  }

  #append(kind: "given" | "written", token: number, text: string): void {
    const span = document.createElement("span");
    span.className = kind;
    span.dataset["token"] = String(token);
    span.textContent = text;
    this.#text.append(span);
    this.#tokens.push(span);
  }

  #choose(token: number): void {
    this.#pick = token;
    this.#draw();
  }

  /** Once per frame at most. */
  #draw(): void {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      const { tokens } = this.#log;
      const token = Math.min(this.#pick ?? tokens - 1, tokens - 1);
      this.#shares.draw(this.#log, token);
      this.#chart.draw(this.#log, token);
      this.#slider.max = String(Math.max(0, tokens - 1));
      this.#slider.value = String(Math.max(0, token));
      this.#slider.disabled = tokens === 0;
      const shown = `Token ${token + 1} of ${tokens}, “${this.#tokens[token]?.textContent ?? ""}”: ${this.#log.describe(token)}`;
      this.#picked.textContent = tokens === 0 ? "No token yet." : shown;
      this.#slider.setAttribute("aria-valuetext", this.#picked.textContent);
      for (const [at, span] of this.#tokens.entries())
        span.classList.toggle("chosen", at === token && tokens > 0);
      if (this.#pick === undefined) this.#text.scrollTop = this.#text.scrollHeight;
    });
  }
}
