plugins {
    id("com.android.application") version "9.1.0" apply false // brings its own Kotlin
}
