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
    /** The program says the class of each pixel, instead of that of the picture. */
    val segments: Boolean,
    /** Red, green and blue of the colour of each class, if it segments. */
    val palette: List<IntArray>,
    /** The program puts out classes (1, height, width), as bytes, instead of logits (1, K, h, w). */
    val classMap: Boolean,
    /** Behind the logits, a classifier puts out class maps (1, K, h, w), which explain them. */
    val explains: Boolean,
) {
    companion object {
        fun parse(text: String): Contract {
            val json = JSONObject(text)
            val labels = json.getJSONArray("labels")
            val palette = json.getJSONArray("palette")
            return Contract(
                height = json.getInt("height"),
                width = json.getInt("width"),
                filter = Filter.valueOf(json.getString("resample").uppercase()),
                cropPct = if (json.isNull("cropPct")) null else json.getDouble("cropPct"),
                takesBytes = json.getString("dtype") == "uint8",
                temperature = json.getDouble("temperature"),
                labels = List(labels.length()) { labels.getString(it) },
                segments = json.getString("task") == "semantic-segmentation",
                palette = List(palette.length()) { index ->
                    val colour = palette.getJSONArray(index)
                    IntArray(3) { colour.getInt(it) }
                },
                classMap = json.getBoolean("classMap"),
                explains = json.getBoolean("explains"),
            )
        }
    }
}
