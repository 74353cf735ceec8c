// Runs the app's arithmetic on files, for tests to compare.

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.swinhf.edge.*

fun main(args: Array<String>) = when (args[0]) {
    "classes" -> classes(args)
    "heat" -> heat(args)
    else -> resize(args)
}

fun floats(file: String, count: Int) = FloatArray(count).also {
    ByteBuffer.wrap(File(file).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(it)
}

fun heat(args: Array<String>) {
    val (number, rows, columns, height, width) = args.drop(2).map { it.toInt() }
    val maps = floats(args[1], (number + 1) * rows * columns)
    val heat = heatOf(maps, number, rows, columns, File(args[1] + ".seen").readBytes(), height, width)
    val colours = heat.pixels.flatMap { listOf(it shr 16, it shr 8, it) }.map { it.toByte() }
    check(heat.pixels.all { it ushr 24 == 255 } && heat.width == width && heat.height == height)
    File(args[1] + ".out").writeBytes(colours.toByteArray())
}

fun classes(args: Array<String>) {
    val (count, rows, columns, height, width) = args.drop(2).map { it.toInt() }
    val floats = floats(args[1], count * rows * columns)
    val map = classMapOf(floats, count, rows, columns, height, width)
    val nearest = classMapOf(ByteArray(rows * columns) { (it % count).toByte() }, rows, columns, height, width)
    val palette = List(count) { intArrayOf(40 * it, 255 - 40 * it, 7) }
    val over = (0 until height).flatMap { y -> map.over(IntArray(width) { 0x0A32C8 }, y, palette).toList() }
    val colours = over.flatMap { listOf(it shr 16, it shr 8, it) }.map { it.toByte() }
    val shares = map.shares(count).joinToString(" ")
    File(args[1] + ".out").writeBytes((map.classes + nearest.classes).map { it.toByte() }.toByteArray() + colours)
    File(args[1] + ".shares").writeText(shares)
}

fun resize(args: Array<String>) = args.toList().chunked(7).forEach { case ->
    val (sourceHeight, sourceWidth, height, width) = case.subList(1, 5).map { it.toInt() }
    val rgb = File(case[0]).readBytes()
    fun at(index: Int) = rgb[index].toInt() and 255
    val picture = Picture(sourceHeight, sourceWidth) { y ->
        IntArray(sourceWidth) { x ->
            val index = (y * sourceWidth + x) * 3
            (255 shl 24) or (at(index) shl 16) or (at(index + 1) shl 8) or at(index + 2)
        }
    }
    val pixels = fit(picture, height, width, case[6].toDoubleOrNull(), Filter.valueOf(case[5].uppercase()))
    val floats = ByteBuffer.allocate(pixels.size * 4).order(ByteOrder.LITTLE_ENDIAN)
    floats.asFloatBuffer().put(toPlanes(pixels))
    File(case[0] + ".out").writeBytes(pixels + floats.array())
}
