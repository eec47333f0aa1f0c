import { CoppiceError, type LayerTap } from "@coppice/core";

/** A field that the tap asked for. @throws COPPICE_BACKEND_FAILED where the backend left it out */
export function required<F extends keyof LayerTap>(shown: LayerTap, field: F): NonNullable<LayerTap[F]> {
  const value = shown[field];
  if (value !== undefined && value !== null) return value;
  throw new CoppiceError(
    "COPPICE_BACKEND_FAILED",
    `the backend did not show ${field} of layer ${shown.layer}, which was asked for`,
  );
}
