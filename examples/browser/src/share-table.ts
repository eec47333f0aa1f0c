import type { ExpertLog } from "./expert-log.js";
import type { ModelEntry } from "./manifest.js";

/** A table of layers and experts: which share of the tokens chose each. Readable as text, and a heat map. */
export class ShareTable {
  /** By layer and expert. */
  readonly #cells: readonly (readonly HTMLTableCellElement[])[];

  constructor(place: HTMLElement, { label, experts, kept }: ModelEntry) {
    const table = document.createElement("table");
    const caption = table.createCaption();
    caption.className = "visually-hidden";
    caption.textContent = `${label}: percent of the tokens that chose an expert, by layer`;
    const head = table.createTHead().insertRow();
    head.append(header("col", "Layer"));
    for (let expert = 0; expert < experts; expert++)
      head.append(header("col", String(expert + 1), "Expert "));
    const body = table.createTBody();
    this.#cells = kept.map((_, layer) => {
      const row = body.insertRow();
      row.append(header("row", String(layer + 1), "Layer "));
      return Array.from({ length: experts }, () => row.insertCell());
    });
    place.replaceChildren(table);
  }

  /** @param token whose choices are marked */
  draw(log: ExpertLog, token: number): void {
    for (const [layer, cells] of this.#cells.entries()) {
      const chosen = log.chosen(layer, token);
      for (const [expert, cell] of cells.entries()) {
        const share = log.share(layer, expert);
        const text = share === undefined ? "–" : String(Math.round(100 * share));
        if (cell.textContent !== text) cell.textContent = text;
        cell.classList.toggle("removed", share === undefined);
        cell.classList.toggle("chosen", chosen.includes(expert));
        cell.style.setProperty("--share", String(share ?? 0));
        if (share === undefined) cell.setAttribute("aria-label", "removed");
      }
    }
  }
}

function header(scope: "col" | "row", text: string, unseen = ""): HTMLTableCellElement {
  const cell = document.createElement("th");
  cell.scope = scope;
  if (unseen) {
    const before = document.createElement("span");
    before.className = "visually-hidden";
    before.textContent = unseen;
    cell.append(before);
  }
  cell.append(text);
  return cell;
}
