package org.swinhf.edge

import kotlin.math.max
import kotlin.math.min

// Maps are enlarged as PyTorch and Pillow enlarge them, bilinearly.

/** Between which two of the given places an enlarged one lies, and how near to the second. */
class Place(val lower: Int, val upper: Int, val share: Float)

/** Where the places of a side of [length] lie on one of [given]. */
fun places(given: Int, length: Int): List<Place> = List(length) { index ->
    val place = min(max((index + 0.5) * given / length - 0.5, 0.0), (given - 1).toDouble())
    val lower = min(place.toInt(), max(given - 2, 0))
    Place(lower, min(lower + 1, given - 1), (place - lower).toFloat())
}

/** The value between four of a map whose rows have [columns] values and that begins at [start]. */
fun FloatArray.between(start: Int, columns: Int, vertical: Place, horizontal: Place): Float {
    val (above, below) = start + vertical.lower * columns to start + vertical.upper * columns
    val upper = this[above + horizontal.lower] * (1 - horizontal.share) + this[above + horizontal.upper] * horizontal.share
    val lower = this[below + horizontal.lower] * (1 - horizontal.share) + this[below + horizontal.upper] * horizontal.share
    return upper * (1 - vertical.share) + lower * vertical.share
}
