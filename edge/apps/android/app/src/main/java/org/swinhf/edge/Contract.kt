package org.swinhf.edge

import org.json.JSONObject

/** What the program takes and what its logits mean: `contract.json`, which `python -m edge app` wrote. */
class Contract(
    val height: Int,
    val width: Int,
    val filter: Filter,
    /** Share of the shorter side that a crop from the middle keeps; null: a picture is stretched to the input's shape. */
    val cropPct: Double?,
    /** The program takes bytes (1, height, width, 3); otherwise floats (1, 3, height, width) in [0, 1]. */
    val takesBytes: Boolean,
    /** Probabilities are softmax(logits / temperature). */
    val temperature: Double,
    /** Names of the classes, in the order of the logits. */
    val labels: List<String>,
) {
    companion object {
        fun parse(text: String): Contract {
            val json = JSONObject(text)
            val labels = json.getJSONArray("labels")
            return Contract(
                height = json.getInt("height"),
                width = json.getInt("width"),
                filter = Filter.valueOf(json.getString("resample").uppercase()),
                cropPct = if (json.isNull("cropPct")) null else json.getDouble("cropPct"),
                takesBytes = json.getString("dtype") == "uint8",
                temperature = json.getDouble("temperature"),
                labels = List(labels.length()) { labels.getString(it) },
            )
        }
    }
}
