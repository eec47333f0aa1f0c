/** How a file of profiles or a trace is written. */
export interface WriteOptions {
  /** Replace a file of that name. @default false */
  readonly overwrite?: boolean;
  readonly signal?: AbortSignal;
}
