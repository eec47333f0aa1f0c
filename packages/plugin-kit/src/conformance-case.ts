/**
 * One check of a conformance suite. Any test runner can loop over them:
 * `for (const { name, run } of cases) test(name, run)`.
 */
export interface ConformanceCase {
  readonly name: string;
  /** Resolves when the check holds; rejects with an Error whose message carries the numbers when it does not. */
  run(): Promise<void>;
}
