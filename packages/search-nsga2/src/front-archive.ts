import { dominates, type Solution } from "./domination.js";

/** Everything told so far that nothing told so far dominates; of equals the earliest. */
export class FrontArchive<S extends Solution> {
  #members: S[] = [];

  get members(): readonly S[] {
    return this.#members;
  }

  add(solution: S): void {
    if (solution.failed) return;
    const isEqual = (other: S) => other.goals.every((value, i) => value === solution.goals[i]);
    if (this.#members.some((other) => dominates(other, solution) || isEqual(other))) return;
    this.#members = [...this.#members.filter((other) => !dominates(solution, other)), solution];
  }
}
